"""The file of a file tier: what is taken for ours, what is refused, what a crash leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import pairwise

import pytest

from crailpy import native
from crailpy.errors import ExistsError, InvalidArgumentError, OutOfSpaceError
from crailpy.server.storage.tiers.file import GRANULE, FileTier, Layout, open_direct

MIB = 1 << 20


@pytest.fixture
def make(tmp_path):
    """Opens tiers over a file, each with a folder of its own, and closes them at the end."""
    made: list[FileTier] = []

    def make_tier(*, path=tmp_path / "tier.data", capacity=4 * MIB, region_max=2 * MIB, server="s"):
        folder = tmp_path / f"folder-{len(made)}"
        tier = FileTier(str(folder), str(path), capacity=capacity, region_max=region_max)
        made.append(tier)
        try:
            tier.open(server)
        except BaseException:
            tier.close()
            raise
        return tier

    yield make_tier
    for tier in made:
        tier.close()


def attached(tier: FileTier) -> list[int]:
    """Gives it to a core for a moment; the sizes that the core has."""
    core = native.Storage()
    try:
        tier.attach(core)
        return [core.regions, *tier.granules]
    finally:
        core.close()


def test_nothing_of_the_file_overlaps(tmp_path):
    for sizes in ([1], [512, 513], [7] * 64, [1 << 20, 3]):
        layout = Layout(sizes)
        parts = [(0, 2 * GRANULE)]
        parts += [(at, at + n * 8) for at, n in zip(layout.generations, sizes, strict=True)]
        parts += [(at, at + n * GRANULE) for at, n in zip(layout.data, sizes, strict=True)]
        assert all(at % GRANULE == 0 for at, _ in parts)
        assert all(end <= at for (_, end), (at, _) in pairwise(parts))
        assert parts[-1][1] == layout.size


def test_all_space_is_taken_at_the_start(make, tmp_path):
    tier = make()
    about = os.stat(tmp_path / "tier.data")
    assert about.st_size == Layout(tier.granules).size
    assert about.st_blocks * 512 >= about.st_size
    assert about.st_mode & 0o777 == 0o600
    assert attached(tier) == [2, 512, 512]


def test_what_was_made_is_found_again(make, tmp_path):
    first = make()
    attached(first)
    first.remember_registered("")
    first.close()
    again = make(server="", capacity=0)
    assert (again.server, again.incarnation, again.registered) == ("s", first.incarnation, True)
    assert again.granules == first.granules
    again.fresh()
    assert again.incarnation != first.incarnation
    assert not again.registered


def test_a_file_that_was_never_finished_is_made_again(make):
    make().close()  # without attach(), as a crash leaves it
    assert attached(make()) == [2, 512, 512]


def test_a_superblock_torn_in_two_leaves_the_one_before(make, tmp_path):
    tier = make()
    attached(tier)
    tier.remember_registered("")
    tier.close()
    path = tmp_path / "tier.data"
    with open(path, "r+b") as file:
        file.seek(tier._serial % 2 * GRANULE + 30)
        file.write(b"\xff" * 20)
    again = make()
    assert again.incarnation == tier.incarnation
    assert not again.registered


def test_two_damaged_superblocks_are_refused(make, tmp_path):
    tier = make()
    attached(tier)
    tier.remember_registered("")
    tier.close()
    with open(tmp_path / "tier.data", "r+b") as file:
        for at in (0, GRANULE):
            file.seek(at + 30)
            file.write(b"\xff" * 20)
    with pytest.raises(InvalidArgumentError, match="damaged"):
        make()


def test_what_is_not_ours_is_refused_and_stays(make, tmp_path):
    path = tmp_path / "letter"
    path.write_bytes(b"Dear Sir")
    with pytest.raises(InvalidArgumentError, match="not empty"):
        make(path=path)
    assert path.read_bytes() == b"Dear Sir"
    path.write_bytes(bytes(20_000))
    with pytest.raises(InvalidArgumentError, match="not empty"):
        make(path=path)
    assert path.stat().st_size == 20_000
    with pytest.raises(InvalidArgumentError, match="folder"):
        make(path=tmp_path)
    with pytest.raises(InvalidArgumentError, match="neither"):
        make(path="/dev/null")


def test_another_size_id_or_a_cut_file_is_refused(make, tmp_path):
    tier = make()
    attached(tier)
    tier.close()
    with pytest.raises(InvalidArgumentError, match="holds 4 MiB, not 8 MiB"):
        make(capacity=8 * MIB)
    with pytest.raises(InvalidArgumentError, match="storage server 's', not 'other'"):
        make(server="other")
    os.truncate(tmp_path / "tier.data", Layout(tier.granules).size - 1)
    with pytest.raises(InvalidArgumentError, match="cut"):
        make()


def test_a_new_file_needs_a_size(make):
    with pytest.raises(InvalidArgumentError, match="how large"):
        make(capacity=0)


def test_one_server_serves_a_file(make):
    make()
    with pytest.raises(ExistsError, match="serves"):
        make()


def test_more_than_the_disk_has_is_refused_and_leaves_nothing(make, tmp_path):
    free = os.statvfs(tmp_path)
    with pytest.raises(OutOfSpaceError, match="are wanted"):
        make(capacity=free.f_bavail * free.f_frsize * 2, region_max=8 << 40)
    assert not (tmp_path / "tier.data").exists()


def mounted(kind: str, options: str, where, *, why: str) -> None:
    where.mkdir()
    command = ["mount", "-t", kind, *(["-o", options] if options else []), kind, str(where)]
    if os.getuid() or not shutil.which("mount"):
        pytest.skip(f"only root may mount a {kind}, {why}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no {kind} to be had here, {why}: {done.stderr.strip()}")


def test_where_direct_io_is_refused_it_goes_through_the_page_cache(make, tmp_path):
    where = tmp_path / "ram"
    mounted("ramfs", "", where, why="which refuses O_DIRECT")
    try:
        tier = make(path=where / "tier.data")
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(tier.path, os.O_RDWR | os.O_DIRECT)
        os.close(open_direct(tier.path))
        assert attached(tier) == [2, 512, 512]
        tier.close()
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_small_file_system_that_fills_up_is_a_clear_error(make, tmp_path):
    where = tmp_path / "small"
    mounted("tmpfs", "size=3m", where, why="which is small")
    try:
        with pytest.raises(OutOfSpaceError, match="are wanted"):
            make(path=where / "tier.data")
        assert list(where.iterdir()) == []
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_block_device_is_taken_whole(make, tmp_path):
    if os.getuid() or not shutil.which("losetup"):
        pytest.skip("a loop device needs root and losetup")
    backing = tmp_path / "disk"
    backing.write_bytes(b"")
    os.truncate(backing, 16 * MIB)
    done = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device to be had: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        tier = make(path=device, capacity=0, region_max=64 * MIB)
        (granules,) = tier.granules
        assert 13 * MIB < granules * GRANULE <= 15 * MIB
        assert attached(tier) == [1, granules]
        incarnation = tier.incarnation
        tier.close()
        again = make(path=device, capacity=0, region_max=64 * MIB)
        assert again.incarnation == incarnation
        again.remove()
        again.close()
        tier = make(path=device, capacity=2 * MIB)  # it was made empty
        assert tier.incarnation != incarnation
        attached(tier)
        tier.close()
        with pytest.raises(InvalidArgumentError, match="holds"):
            make(path=device, capacity=MIB)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
