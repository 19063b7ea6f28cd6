"""Patterns against pathlib's own, over random trees."""

from __future__ import annotations

import pathlib
import random

import pytest

from crailpy.client.globs import Pattern
from crailpy.errors import InvalidPathError


def matched(pattern: str, paths: list[str]) -> list[str]:
    """The paths of a tree that match, each path walked name by name."""
    walked = Pattern(pattern)
    found = []
    for path in paths:
        names = [name for name in path.split("/") if name]
        base = [name for name in walked.base.split("/") if name]
        if names[: len(base)] != base:
            continue
        states = walked.start
        for name in names[len(base) :]:
            states = walked.step(states, name)
        if walked.accepts(states):
            found.append(path)
    return found


def random_tree(rng: random.Random) -> list[str]:
    names = ["a", "b", "ab", ".h", "x1", "x2", "[q]"]
    paths = {"/"}
    for _ in range(60):
        depth = rng.randrange(1, 5)
        parts = [rng.choice(names) for _ in range(depth)]
        paths |= {"/" + "/".join(parts[:i]) for i in range(1, depth + 1)}
    return sorted(paths)


PARTS = ["*", "**", "a", "a*", "?", "x[12]", "[!x]*", "*b", "[[]q]", "b", ".*"]


@pytest.mark.parametrize("seed", range(40))
def test_patterns_match_what_pathlib_matches(seed: int, tmp_path: pathlib.Path) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng)
    for path in tree[1:]:
        (tmp_path / path[1:]).mkdir(parents=True, exist_ok=True)
    for _ in range(10):
        parts = [rng.choice(PARTS) for _ in range(rng.randrange(1, 5))]
        # one ** behind another matches twice in some Pythons, and ** at the end files in none
        pattern = "/".join(parts)
        theirs = {"/" + str(p.relative_to(tmp_path)) for p in tmp_path.glob(pattern)}
        theirs = {"/" if p == "/." else p for p in theirs}
        assert matched("/" + pattern, tree) == sorted(theirs), f"seed {seed}, {pattern}"


def test_the_part_above_the_first_wildcard_is_not_searched() -> None:
    assert Pattern("/a/b/*.txt").base == "/a/b"
    assert Pattern("/a/b").base == "/a/b"
    assert Pattern("/*").base == "/"


def test_a_pattern_begins_with_a_slash() -> None:
    with pytest.raises(InvalidPathError):
        Pattern("a/*")


def test_many_wildcards_do_not_explode() -> None:
    walked = Pattern("/" + "**/a/" * 20)
    states = walked.start
    for _ in range(100):
        states = walked.step(states, "a")
        assert len(states) <= 41
    assert walked.accepts(states)
