"""Admission: limits are kept, and every place is given back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import OverloadedError
from app.serving.admission import Admission


@given(limit=st.integers(1, 20), sizes=st.lists(st.integers(1, 25), max_size=10))
def test_limit_is_kept_and_places_come_back(limit: int, sizes: list[int]) -> None:
    admission = Admission(limit)
    for size in sizes:
        if size <= limit:
            with admission.enter() as ticket:
                ticket.grow(size)
                assert admission.pictures == size
        else:
            with pytest.raises(OverloadedError), admission.enter() as ticket:
                ticket.grow(size)
        assert admission.pictures == 0


def test_refusal_counts_all_requests_together() -> None:
    admission = Admission(3)
    with admission.enter() as first, admission.enter():
        with pytest.raises(OverloadedError):
            first.grow(3)
        first.grow(2)
        with pytest.raises(OverloadedError), admission.enter():
            pytest.fail("there was no room")
        assert admission.pictures == 3
    assert admission.pictures == 0


def test_refusal_says_when_to_come_back() -> None:
    with pytest.raises(OverloadedError) as caught, Admission(1).enter() as ticket:
        ticket.grow(2)
    assert caught.value.headers == {"Retry-After": "1"}
    assert caught.value.status == 429


def test_place_comes_back_after_an_error() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="decoding"), admission.enter():
        raise ValueError("decoding")
    assert admission.pictures == 0
