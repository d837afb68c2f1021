"""Ids that sort by time."""

import time
import uuid

import pytest

from app import uuid7


def test_they_are_what_the_standard_says() -> None:
    before = time.time()
    made = [uuid.UUID(uuid7.new()) for _ in range(1000)]
    assert {name.version for name in made} == {7}
    assert {name.variant for name in made} == {uuid.RFC_4122}
    assert len(set(made)) == 1000
    assert all(before - 0.001 <= (name.int >> 80) / 1000 <= time.time() for name in made)
    # Every random bit is 0 in some and 1 in others: nobody can guess the rest from a part.
    assert all(0 < sum(name.int >> bit & 1 for name in made) < 1000 for bit in (*range(62), *range(64, 76)))


def test_they_sort_by_time() -> None:
    now = time.time()
    assert uuid7.floor(now - 1) < uuid7.floor(now - 0.001) < uuid7.new() < uuid7.floor(time.time() + 1)
    assert uuid7.floor(-5) == uuid7.floor(0)


def test_the_moment_is_read_back() -> None:
    assert uuid7.moment(uuid7.floor(1234.567)) == 1234.567


@pytest.mark.parametrize(
    "text", ["", "x", "36568df5-fef7-44e3-93f2-9b7653d694e5", "../../etc/passwd", uuid7.floor(0) + "0"]
)
def test_what_is_none_has_no_moment(text: str) -> None:
    assert uuid7.moment(text) is None
