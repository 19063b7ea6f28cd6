"""The word count of the demo, without a store: what is split and packed adds up again."""

from __future__ import annotations

import random
from pathlib import Path

from crailpy.client.demo import add_up, count_words, partition, plan, source_files, unpack

TEXTS = [b"a b a", b"def f(self): return self.x_1", b"", b"a\nb\xc3\xa4b"]


def test_partitions_of_several_maps_add_up_to_the_plain_count() -> None:
    maps = [partition(count_words([text]), 3) for text in TEXTS]
    total = {}
    for number in range(3):
        part = add_up(values[number] for values in maps)
        assert not part.keys() & total.keys()
        total |= part
    assert total == dict(count_words(TEXTS))
    assert total[b"a"] == 3


def test_every_partition_can_be_unpacked_even_an_empty_one() -> None:
    values = partition(count_words([b"one"]), 4)
    assert [list(unpack(value)) for value in values].count([(b"one", 1)]) == 1


def test_plan_gives_every_file_to_one_task(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"m{i}.py").write_bytes(b"x" * random.Random(i).randrange(1000))
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_bytes(b"x")
    files = source_files(str(tmp_path))
    assert len(files) == 20
    groups = plan(files, 6)
    assert sorted(path for group in groups for path in group) == files
    assert all(groups)
