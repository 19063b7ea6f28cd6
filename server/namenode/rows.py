"""Rows of a cut as the database keeps them (native/include/crail/rows.h).

A row's value in the database is the row itself, head and checksum included; its key is one byte for
the table, then the row's key with integers turned round, so that the order is that of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from crailpy import native

NODE, SESSION, LANE, SERVER, SUPER = 1, 2, 3, 4, 5
NAMES = {NODE: "node", SESSION: "session", LANE: "lane", SERVER: "server", SUPER: "super"}

HEAD = Struct("<IBBHII")  # size, table, gone, key_len, value_len, crc
SERVER_HEAD = Struct("<BBHIII")  # state, storage_class, regions, location, note, reserved
_U32, _U64 = Struct("<I"), Struct("<Q")

Buffer = bytes | memoryview


def parse(rows: Buffer) -> Iterator[tuple[bytes, bytes | None]]:
    """(key in the database, the row) of each row; None for one that is gone."""
    at, end = 0, len(rows)
    unpack = HEAD.unpack_from
    while at < end:
        size, table, gone, key_len, _, _ = unpack(rows, at)
        start = at + HEAD.size
        key = key_of(table, bytes(rows[start : start + key_len]))
        yield key, None if gone else bytes(rows[at : at + size])
        at += size


def key_of(table: int, key: bytes) -> bytes:
    """The key in the database of a row's key."""
    if table == LANE:
        return b"\x03" + key[7::-1] + key[:7:-1]
    return bytes((table,)) + (key if table == SUPER else key[::-1])


def take_apart(key: bytes, row: bytes) -> str | None:
    """What is wrong with a row at first sight, its checksum left out; None: nothing."""
    if len(row) < HEAD.size:
        return "it has no head"
    size, table, gone, key_len, value_len, _ = HEAD.unpack_from(row)
    if size != len(row) or size != (HEAD.size + key_len + value_len + 7) & ~7 or gone:
        return "its lengths do not agree"
    if key_of(table, row[HEAD.size : HEAD.size + key_len]) != key:
        return "it belongs elsewhere"
    return None


def name_of(key: bytes) -> str:
    """A row's key in words: `node 17`, `lane 3 of session 5f`."""
    table = key[0] if key else 0
    number = int.from_bytes(key[1:9], "big")
    if table == LANE:
        return f"lane {int.from_bytes(key[9:], 'big')} of session {number:x}"
    if table == SESSION:
        return f"session {number:x}"
    if table == SUPER:
        return f"super {key[1:].decode(errors='replace')!r}"
    return f"{NAMES.get(table, f'row of table {table}')} {number}"


def value_of(row: bytes) -> bytes:
    """The value in a row."""
    _, _, _, key_len, value_len, _ = HEAD.unpack_from(row)
    start = HEAD.size + int(key_len)
    return row[start : start + value_len]


def server_of(key: bytes, row: bytes) -> tuple[int, int, bytes]:
    """Of a row of a server: (number, state, its description)."""
    value = value_of(row)
    state, _, regions, _, size, _ = SERVER_HEAD.unpack_from(value)
    start = SERVER_HEAD.size + 4 * int(regions)
    return int.from_bytes(key[1:], "big"), state, value[start : start + size]


def super_row(name: str, value: bytes) -> tuple[bytes, bytes]:
    """(key, row) of one of the superblock."""
    coded = name.encode()
    return key_of(SUPER, coded), native.row_make(SUPER, coded, value)
