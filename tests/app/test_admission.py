"""Admission: limits are kept, nobody waits long, nothing idles meanwhile, and every place is given back."""

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import OverloadedError
from app.serving.admission import Admission
from app.serving.pace import Pace
from tests.app.clock import Clock


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
            ticket.begin(pictures)
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


@dataclass
class Simulation:
    """A server that computes batches, the time of which its pictures decide, and takes what `admission` lets in.

    `waits` has when each accepted picture came, and how long it took until its answer; `idle` is how long the server
    had nothing to do after its first batch.
    """

    batch: int
    max_wait: float
    waits: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    idle: float = 0.0

    def run(self, stages: list[tuple[float, float, float]]) -> None:
        """Run stages one after the other, each of: until when, seconds of a picture, and its load (1: all it can)."""
        clock = Clock()
        admission = Admission(10**6, 10**6, self.max_wait, Pace(clock))
        queue: deque[tuple[float, ExitStack]] = deque()
        computed: list[tuple[float, ExitStack]] = []
        arrives = finishes = 0.0
        for ends, seconds, load in stages:
            while arrives < ends:
                if computed and finishes <= arrives:
                    clock.now = finishes
                    for came, place in computed:
                        place.close()
                        self.waits.append((came, clock.now - came))
                    computed = []
                else:
                    clock.now = arrives
                    arrives += seconds / load
                    self._arrive(admission, queue, clock.now)
                if queue and not computed:
                    self.idle += clock.now - finishes if finishes else 0.0
                    computed = [queue.popleft() for _ in range(min(self.batch, len(queue)))]
                    finishes = clock.now + len(computed) * seconds

    def _arrive(self, admission: Admission, queue: deque[tuple[float, ExitStack]], now: float) -> None:
        place = ExitStack()
        try:
            place.enter_context(admission.enter(0)).begin(1)
        except OverloadedError:
            self.refused += 1
        else:
            queue.append((now, place))


rates = st.floats(0.02, 0.3)  # seconds of a picture


@settings(max_examples=30)
@given(first=rates, then=rates, batch_seconds=st.floats(0, 1), load=st.floats(1.2, 4), max_wait=st.floats(3, 8))
def test_nobody_waits_long_and_nothing_idles(
    first: float, then: float, batch_seconds: float, load: float, max_wait: float
) -> None:
    simulation = Simulation(max(1, int(batch_seconds / max(first, then))), max_wait)
    simulation.run([(40, first, load), (90, then, load)])
    settled = [wait for came, wait in simulation.waits if 20 < came < 40 - max_wait or came > 70]
    assert settled
    assert max(settled) < 1.25 * max_wait + batch_seconds + 2 * then
    assert simulation.refused
    assert simulation.idle < 0.5


@settings(max_examples=30)
@given(seconds=rates, batch_seconds=st.floats(0, 1), load=st.floats(0.1, 0.9), max_wait=st.floats(3, 8))
def test_nobody_is_refused_below_the_limit(seconds: float, batch_seconds: float, load: float, max_wait: float) -> None:
    simulation = Simulation(max(1, int(batch_seconds / seconds)), max_wait)
    simulation.run([(60, seconds, load)])
    assert simulation.waits
    assert not simulation.refused


def test_clients_that_send_slowly_do_not_count_as_slowness() -> None:
    clock = Clock()
    admission = Admission(100, 100, 5, Pace(clock))
    with admission.enter(0):
        clock.now += 1000
        with admission.enter(0) as other:
            other.begin(1)
            clock.now += 2
            assert admission.pace.wait() == 2
        assert admission.pace.wait() == 0
        admission.enter(0)


def test_what_was_read_too_late_is_refused() -> None:
    clock = Clock()
    admission = Admission(100, 100, 5, Pace(clock))
    with admission.enter(0) as first, admission.enter(0) as second:
        first.begin(1)
        clock.now += 6
        with pytest.raises(OverloadedError):
            second.begin(1)
    assert admission.pictures == admission.pace.working == 0


def test_answered_pictures_of_a_batch_give_their_places_back() -> None:
    admission = Admission(3, 1)
    with admission.enter(0) as ticket:
        ticket.begin(4)
        with pytest.raises(OverloadedError), admission.enter(0):
            pytest.fail("there was no room")
        ticket.done()
        ticket.done()
        with admission.enter(0):
            assert admission.pictures == 3
    assert admission.pictures == 0


def test_refusal_says_when_to_come_back() -> None:
    clock = Clock()
    admission = Admission(1, 1, pace=Pace(clock))
    for passes, seconds in ((0, "1"), (3.5, "4"), (10**6, "60")):
        with admission.enter(0) as ticket:
            ticket.begin(1)
            clock.now += passes
            with pytest.raises(OverloadedError) as caught, admission.enter(0):
                pytest.fail("there was no room")
        assert caught.value.headers == {"Retry-After": seconds}
        assert caught.value.status == 429


def test_place_comes_back_after_an_error() -> None:
    admission = Admission(1, 1)
    with pytest.raises(ValueError, match="decoding"), admission.enter(1):
        raise ValueError("decoding")
    assert (admission.pictures, admission.bytes) == (0, 0)
