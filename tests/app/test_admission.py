"""Admission: limits are kept, and every place is given back."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import OverloadedError
from app.serving.admission import Admission


@given(
    limits=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    requests=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=20),
)
def test_limits_are_kept_and_places_come_back(limits: tuple[int, int], requests: list[tuple[int, int]]) -> None:
    admission = Admission(*limits)
    with ExitStack() as stack:
        for pictures, size in requests:
            before = admission.pictures, admission.bytes
            full = before[0] >= limits[0] or (size > 0 and before[1] >= limits[1])
            try:
                ticket = stack.enter_context(admission.enter(size))
            except OverloadedError:
                assert full
                assert (admission.pictures, admission.bytes) == before
                continue
            assert not full
            ticket.count(pictures)
            assert (admission.pictures, admission.bytes) == (before[0] + pictures, before[1] + size)
    assert (admission.pictures, admission.bytes) == (0, 0)


def test_body_that_grows_is_refused_once_others_take_all_room() -> None:
    admission = Admission(10, 100)
    with admission.enter(0) as first, admission.enter(60) as second:
        first.read(10)
        first.read(1000)  # the others leave room
        with pytest.raises(OverloadedError):
            second.read(61)
        second.read(60)
        assert admission.bytes == 1060
    assert admission.bytes == 0


def test_refusal_says_when_to_come_back() -> None:
    admission = Admission(1, 1)
    with admission.enter(0), pytest.raises(OverloadedError) as caught, admission.enter(0):
        pytest.fail("there was no room")
    assert caught.value.headers == {"Retry-After": "1"}
    assert caught.value.status == 429


def test_place_comes_back_after_an_error() -> None:
    admission = Admission(1, 1)
    with pytest.raises(ValueError, match="decoding"), admission.enter(1):
        raise ValueError("decoding")
    assert (admission.pictures, admission.bytes) == (0, 0)
