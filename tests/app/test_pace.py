"""Pace: what is measured is work, and neither idleness nor the way in which it comes in bursts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serving.pace import Pace
from tests.app.clock import Clock


@given(
    seconds=st.floats(0.01, 1),
    batch=st.integers(1, 64),
    pauses=st.lists(st.floats(0, 1e6), min_size=1, max_size=5),
)
def test_work_is_measured_and_pauses_are_not(seconds: float, batch: int, pauses: list[float]) -> None:
    clock = Clock()
    pace = Pace(clock)
    for pause in pauses:
        clock.now += pause
        for _ in range(math.ceil(3 / batch / seconds)):
            pace.begin(batch)
            clock.now += batch * seconds
            pace.end(batch)
    assert pace.seconds() == pytest.approx(seconds)


def test_slower_work_is_noticed_before_it_is_done() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(1000):
        pace.begin(1)
        clock.now += 0.01
        pace.end(1)
    assert pace.seconds() == pytest.approx(0.01)
    pace.begin(1)
    clock.now += 60
    assert pace.seconds() > 0.05


def test_new_pace_counts_more_than_the_old_one() -> None:
    clock = Clock()
    pace = Pace(clock)
    for seconds in [1.0] * 1000 + [0.01] * 2000:
        pace.begin(1)
        clock.now += seconds
        pace.end(1)
    assert pace.seconds() < 0.02


def test_nothing_is_said_before_a_second_of_work() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.begin(3)
    clock.now += 0.9
    assert pace.seconds() == 0
    clock.now += 0.2
    assert pace.seconds() == pytest.approx(1.1)  # and that although none is done
    assert pace.wait() == pytest.approx(3.3)
