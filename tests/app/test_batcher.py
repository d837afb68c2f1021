"""The batcher, driven with the shipped fake engine: nothing is lost, doubled, mixed up or dragged down by another."""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ClosingError, DeadlineError, InferenceError
from app.serving.batcher import Batcher
from app.serving.curve import Curve
from app.serving.engine import Pixels, Probabilities
from app.serving.fake import FakeEngine
from app.serving.turns import Turns
from app.telemetry import Timing

Outcome = Probabilities | BaseException


def flat(max_batch: int) -> Curve:
    """Every batch takes a second, so the largest one is the best."""
    return Curve({1: 1, max_batch: 1})


def drive(engine: FakeEngine, max_batch: int, scenario: Callable[[Batcher], Awaitable[None]]) -> None:
    """Run a scenario with a batcher that is closed at its end."""

    async def run() -> None:
        turns = Turns()
        batcher = Batcher(engine, flat(max_batch), turns)
        try:
            await scenario(batcher)
        finally:
            engine.gate.set()
            await batcher.close()
            turns.shutdown()

    asyncio.run(run())


def ask(batcher: Batcher, identity: int, deadline: float = math.inf, decode: float = 0) -> asyncio.Task[Probabilities]:
    picture = FakeEngine.picture(identity)
    return asyncio.create_task(batcher.predict(picture, Timing(decode=decode), deadline))


async def arrival(engine: FakeEngine) -> None:
    """Wait until the next batch is at the engine's gate."""
    await asyncio.to_thread(engine.entered.acquire)


@contextmanager
def busy(engine: FakeEngine) -> Iterator[None]:
    """The engine is held in its batch until the block ends."""
    engine.gate.clear()
    yield
    engine.gate.set()


class Steps(Executor):
    """Runs what it was given one by one, when it is told to, on a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self._jobs: deque[Callable[[], object]] = deque()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._jobs.append(lambda: function(*args, **kwargs))
        return Future()

    async def step(self) -> bool:
        """Run the oldest job and let the event loop see to its outcome; tell whether there was one."""
        await asyncio.sleep(0)
        if self._jobs:
            self._jobs.popleft()()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return bool(self._jobs)


waves = st.lists(st.integers(0, 255), min_size=1, max_size=120, unique=True).flatmap(
    lambda identities: st.tuples(
        st.just(identities),
        st.lists(st.integers(1, len(identities)), max_size=4),  # where one wave ends and the next begins
        st.sets(st.sampled_from(identities), max_size=6),  # poisonous
        st.sets(st.sampled_from(identities), max_size=20),  # whose callers give up
    )
)


@settings(max_examples=150, deadline=None)
@given(wave=waves, max_batch=st.integers(1, 70))
def test_everybody_gets_the_own_answer_once(
    wave: tuple[list[int], list[int], set[int], set[int]], max_batch: int
) -> None:
    identities, cuts, poison, leaving = wave
    engine = FakeEngine(poison)
    outcomes: dict[int, Outcome] = {}

    async def scenario(batcher: Batcher) -> None:
        callers: dict[int, asyncio.Task[Probabilities]] = {}
        bounds = sorted({0, *cuts, len(identities)})
        for start, end in pairwise(bounds):
            with busy(engine):
                callers |= {identity: ask(batcher, identity) for identity in identities[start:end]}
                await arrival(engine)
                for identity in leaving.intersection(identities[start:end]):
                    callers[identity].cancel()
        found = await asyncio.gather(*callers.values(), return_exceptions=True)
        outcomes.update(zip(callers, found, strict=True))

    drive(engine, max_batch, scenario)
    assert max(map(len, engine.batches)) <= max_batch
    computed = [identity for batch in engine.batches if not poison.intersection(batch) for identity in batch]
    assert len(computed) == len(set(computed))
    for identity, outcome in outcomes.items():
        if isinstance(outcome, asyncio.CancelledError):
            assert identity in leaving
        elif identity in poison:
            assert isinstance(outcome, InferenceError)
        else:
            assert not isinstance(outcome, BaseException)
            assert outcome.tolist() == [identity]
            assert identity in computed


def test_what_arrives_together_is_computed_together() -> None:
    engine = FakeEngine()

    async def scenario(batcher: Batcher) -> None:
        await asyncio.gather(*(ask(batcher, identity) for identity in range(5)))

    drive(engine, 64, scenario)
    assert engine.batches == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("unit", "callers", "expected"),
    [
        (1, 1, [1, 1, 1]),
        (1, 3, [2, 2, 2]),
        (1, 12, [2, 6, 6]),
        (1e-5, 1, [1, 1, 1]),  # costs less than Python: half of that
        (1e-5, 3, [2, 1, 1]),
        (1e-5, 12, [2, 3, 3]),
    ],
)
def test_batch_begins_before_all_was_looked_at_with_half_of_what_is_in_work(
    unit: float, callers: int, expected: list[int]
) -> None:
    # Twice what a picture costs at best with 2, 1.4 times with 8.
    curve = Curve({size: unit * cost for size, cost in {1: 3, 2: 4, 4: 7, 8: 11, 16: 16}.items()})
    asked, begun = [0], list[int]()

    class Noting(Steps):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            begun.append(asked[0])
            return super().submit(function, *args, **kwargs)

    async def scenario() -> None:
        steps = Noting()
        batcher = Batcher(FakeEngine(), curve, Turns(steps))

        async def call(identity: int) -> None:
            asked[0] += 1
            await batcher.predict(FakeEngine.picture(identity))

        for _ in range(3):
            asked[0] = 0
            answers = asyncio.gather(*map(call, range(callers)))
            await asyncio.sleep(0)
            while await steps.step():
                pass
            await answers
        await batcher.close()

    asyncio.run(scenario())
    assert begun == expected


LONG = 60.0  # longer than a test takes

moves = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.one_of(st.just(math.inf), st.floats(0, 30))),  # for an answer within so long
        st.tuples(st.just("step"), st.floats(0, 4)),  # the next batch, and how long it took
        st.tuples(st.just("leave"), st.floats(0, 1)),  # which of the callers so far
        st.tuples(st.just("decode"), st.just(0.0)),
        st.tuples(st.just("decoded"), st.sampled_from([0.0, LONG])),  # how long it took
    ),
    max_size=60,
)


async def play(batcher: Batcher, steps: Steps, moves: list[tuple[str, float]]) -> list[tuple[float, Outcome]]:
    """Make the moves, then let everything end; gives the deadline and the outcome of every caller."""
    callers: list[asyncio.Task[Probabilities]] = []
    deadlines: list[float] = []
    for move, value in moves:
        if move == "ask":
            deadlines.append(steps.now + value)
            callers.append(ask(batcher, len(callers), deadlines[-1]))
        elif move == "decode":
            batcher.coming.__enter__()
        elif move == "decoded":
            if batcher.coming.count:
                batcher.coming.__exit__()
                deadlines.append(math.inf)
                callers.append(ask(batcher, len(callers), decode=value))
        elif move == "step":
            await steps.step()
            steps.now += value
        elif callers:
            callers[int(value * (len(callers) - 1))].cancel()
    while batcher.coming.count:  # damaged pictures
        batcher.coming.__exit__()
    closing = asyncio.create_task(batcher.close())
    while not closing.done():
        await steps.step()
        steps.now += 1
    return list(zip(deadlines, await asyncio.gather(*callers, return_exceptions=True), strict=True))


@settings(max_examples=200, deadline=None)
@given(moves=moves, largest=st.integers(1, 9), divided=st.booleans())
def test_order_and_deadlines_are_kept(moves: list[tuple[str, float]], largest: int, divided: bool) -> None:
    steps = Steps()
    curve = Curve({size: 1 + size / 10 for size in range(1, largest + 1)})
    begun: list[tuple[float, float, list[int]]] = []  # when, how long it takes, and whose pictures

    class Timed(FakeEngine):
        def __init__(self, slower: int) -> None:
            super().__init__()
            self._slower = slower

        def predict(self, pictures: Pixels) -> Probabilities:
            rows = super().predict(pictures)
            begun.append((steps.now, self._slower * curve.estimate(len(pictures)), self.batches[-1]))
            return rows

    async def scenario() -> list[tuple[float, Outcome]]:
        halves = Timed(2) if divided else None
        batcher = Batcher(Timed(1), curve, Turns(steps, steps), halves=halves, clock=lambda: steps.now)
        return await play(batcher, steps, moves)

    callers = asyncio.run(scenario())
    computed = [identity for _, _, batch in begun for identity in batch]
    assert computed == sorted(set(computed)), "everybody at most once, and in the order of arrival"
    for start, took, batch in begun:
        assert len(batch) <= curve.batch
        assert start + took <= min(callers[identity][0] for identity in batch)
    for identity, (deadline, outcome) in enumerate(callers):
        if isinstance(outcome, DeadlineError):
            assert deadline < math.inf
            assert identity not in computed
        elif not isinstance(outcome, asyncio.CancelledError):
            assert not isinstance(outcome, BaseException)
            assert outcome.tolist() == [identity]


@pytest.mark.parametrize("divided", [False, True])
def test_photos_wait_for_half_of_those_in_work(divided: bool) -> None:
    whole, halves, steps = FakeEngine(), FakeEngine(), Steps()
    engine = halves if divided else whole

    async def scenario() -> None:
        batcher = Batcher(whole, Curve({1: 1, 16: 1}), Turns(steps, steps), halves=halves if divided else None)
        for _ in range(8):
            batcher.coming.__enter__()
        callers = []
        for identity in range(4):
            assert engine.batches == []
            batcher.coming.__exit__()
            callers.append(ask(batcher, identity, decode=LONG))
            await steps.step()
        assert engine.batches == [[0, 1, 2, 3]]
        for _ in range(4):
            batcher.coming.__exit__()
        await asyncio.gather(*callers)
        await batcher.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("decode", "deadline"), [(0, math.inf), (0.02, math.inf), (LONG, 1e12)], ids=["small", "patient", "hurried"]
)
def test_nobody_waits_for_others_longer_than_the_own_picture_took(decode: float, deadline: float) -> None:
    engine = FakeEngine()

    async def scenario(batcher: Batcher) -> None:
        with batcher.coming, batcher.coming, batcher.coming:
            await ask(batcher, 0, deadline, decode)

    drive(engine, 16, scenario)
    assert engine.batches == [[0]]


def test_nobody_waits_for_a_picture_that_turns_out_to_be_damaged() -> None:
    engine = FakeEngine()

    async def scenario(batcher: Batcher) -> None:
        with batcher.coming, batcher.coming:
            photo = ask(batcher, 0, decode=LONG)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await photo

    drive(engine, 16, scenario)
    assert engine.batches == [[0]]


@pytest.mark.parametrize(
    ("seconds", "deadline", "expected"),
    [(LONG, math.inf, [8, 6]), (0.01, math.inf, [8, 4, 2]), (LONG, 1e12, [8, 4, 2])],
    ids=["patient", "short", "hurried"],
)
def test_batch_waits_a_part_of_its_time_for_half_of_those_who_were_there(
    seconds: float, deadline: float, expected: list[int]
) -> None:
    engine, steps = FakeEngine(), Steps()

    async def scenario() -> None:
        batcher = Batcher(engine, Curve({1: seconds, 8: seconds}), Turns(steps))
        callers = [ask(batcher, identity, deadline) for identity in range(12)]
        await steps.step()  # eight of them
        while len(expected) > 2 and len(engine.batches) < 2:
            await steps.step()
        callers += [ask(batcher, identity, deadline) for identity in range(12, 14)]
        await steps.step()
        await steps.step()
        assert list(map(len, engine.batches)) == expected
        await asyncio.gather(*callers)
        await batcher.close()

    asyncio.run(scenario())


SLOW = Curve({1: 0.011, 8: 0.011})  # a batch of 8 is worth dividing


def test_only_what_would_take_long_is_divided_among_two_threads() -> None:
    whole, halves = FakeEngine(), FakeEngine()

    async def scenario() -> None:
        turns = Turns()
        batcher = Batcher(whole, SLOW, turns, halves=halves)
        with busy(halves):
            callers = [ask(batcher, identity) for identity in range(8)]
            for _ in range(2):
                await arrival(halves)  # both are computed at the same time
            callers += [ask(batcher, identity) for identity in range(8, 11)]
            await asyncio.sleep(0)  # lets them begin to wait, for all processors
        await asyncio.gather(*callers)
        await asyncio.gather(*(ask(batcher, identity) for identity in range(7)))
        await batcher.close()
        turns.shutdown()

    asyncio.run(scenario())
    assert sorted(halves.batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert whole.batches == [[8, 9, 10], [*range(7)]]


class Asked(Turns):
    """Tells when a turn is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)

    @contextmanager
    def take(self, halves: int) -> Iterator[None]:
        self.asked.release()
        with super().take(halves):
            yield


def test_what_comes_while_a_batch_waits_for_its_turn_does_not_make_it_long() -> None:
    whole, halves = FakeEngine(), FakeEngine()

    async def scenario() -> None:
        turns = Asked()
        batcher = Batcher(whole, SLOW, turns, halves=halves)
        with turns.take(1):  # by another model
            turns.asked.acquire()
            callers = [ask(batcher, 0)]
            await asyncio.to_thread(turns.asked.acquire)
            callers += [ask(batcher, identity) for identity in range(1, 15)]
            await asyncio.sleep(0)
        await asyncio.gather(*callers)
        await batcher.close()
        turns.shutdown()

    asyncio.run(scenario())
    assert whole.batches[0] == [*range(7)]
    assert halves.batches[0][:4] == [*range(7, 11)]


def test_no_batch_has_both_threads_beside_work_of_low_priority() -> None:
    whole, halves, alone = FakeEngine(), FakeEngine(), FakeEngine()

    async def scenario() -> None:
        turns = Turns()
        turns.apart = True
        batcher, undivided = Batcher(whole, SLOW, turns, halves=halves), Batcher(alone, SLOW, turns)
        with busy(halves):
            callers = []
            for identity in range(2):
                callers.append(ask(batcher, identity))
                await arrival(halves)  # the second does not wait for the first
        callers.append(ask(undivided, 2))
        await asyncio.gather(*callers)
        await asyncio.gather(batcher.close(), undivided.close())
        turns.shutdown()

    asyncio.run(scenario())
    assert (whole.batches, sorted(halves.batches), alone.batches) == ([], [[0], [1]], [[2]])


def test_short_batches_are_not_divided_however_many_wait() -> None:
    whole, halves = FakeEngine(), FakeEngine()

    async def scenario() -> None:
        turns = Turns()
        batcher = Batcher(whole, SLOW, turns, halves=halves, long=False)
        await asyncio.gather(*(ask(batcher, identity) for identity in range(100)))
        await batcher.close()
        turns.shutdown()

    asyncio.run(scenario())
    assert halves.batches == []
    assert max(map(len, whole.batches)) == 8


waves_of_two = st.lists(st.integers(0, 255), max_size=40, unique=True)


@settings(max_examples=50, deadline=None)
@given(
    identities=st.tuples(waves_of_two, waves_of_two),
    poison=st.sets(st.integers(0, 255), max_size=20),
    apart=st.booleans(),
)
def test_models_that_share_the_threads_answer_all_their_callers(
    identities: tuple[list[int], list[int]], poison: set[int], apart: bool
) -> None:
    async def scenario() -> list[list[Outcome]]:
        turns = Turns()
        turns.apart = apart
        batchers = [Batcher(FakeEngine(poison), SLOW, turns, halves=FakeEngine(poison)) for _ in identities]
        found = await asyncio.gather(
            *(
                asyncio.gather(*(ask(batcher, identity) for identity in mine), return_exceptions=True)
                for batcher, mine in zip(batchers, identities, strict=True)
            )
        )
        await asyncio.gather(*(batcher.close() for batcher in batchers))
        turns.shutdown()
        return found

    for mine, found in zip(identities, asyncio.run(scenario()), strict=True):
        for identity, outcome in zip(mine, found, strict=True):
            if identity in poison:
                assert isinstance(outcome, InferenceError)
            else:
                assert not isinstance(outcome, BaseException)
                assert outcome.tolist() == [identity]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 100), max_batch=st.integers(1, 40), leaving=st.sets(st.integers(1, 99), max_size=50))
def test_callers_that_left_cost_nothing(count: int, max_batch: int, leaving: set[int]) -> None:
    engine = FakeEngine()

    async def scenario(batcher: Batcher) -> None:
        with busy(engine):
            first = ask(batcher, 0)
            await arrival(engine)
            others = {identity: ask(batcher, identity) for identity in range(1, count)}
            await asyncio.sleep(0)  # lets them begin to wait
            for identity in leaving.intersection(others):
                others[identity].cancel()
            await asyncio.gather(*(task for task in others.values() if task.cancelling()), return_exceptions=True)
        await asyncio.gather(first, *(others[identity] for identity in others.keys() - leaving))

    drive(engine, max_batch, scenario)
    left = [identity for identity in range(1, count) if identity not in leaving]
    full = [left[start : start + max_batch] for start in range(0, len(left), max_batch)]
    # What gathers while the engine is busy goes in full batches, in the order of arrival.
    assert engine.batches == [[0], *full]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 64), data=st.data())
def test_one_culprit_is_found_in_logarithmic_time(count: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, count - 1))
    engine = FakeEngine({culprit})

    async def scenario(batcher: Batcher) -> None:
        with busy(engine):
            first = ask(batcher, 255)
            await arrival(engine)
            others = [ask(batcher, identity) for identity in range(count)]
            await asyncio.sleep(0)  # lets them begin to wait
        found = await asyncio.gather(*others, return_exceptions=True)
        assert [isinstance(outcome, InferenceError) for outcome in found] == [i == culprit for i in range(count)]
        await first

    drive(engine, 64, scenario)
    assert len(engine.batches) <= 2 + 2 * (count - 1).bit_length()


def test_idle_engine_takes_a_lone_picture() -> None:
    engine = FakeEngine()

    async def scenario(batcher: Batcher) -> None:
        for identity in range(3):
            assert (await batcher.predict(FakeEngine.picture(identity))).tolist() == [identity]

    drive(engine, 64, scenario)
    assert engine.batches == [[0], [1], [2]]


def test_failure_tells_nothing_of_the_inside() -> None:
    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(InferenceError) as caught:
            await batcher.predict(FakeEngine.picture(7))
        assert "poison" not in str(caught.value)
        assert "poisonous pictures: [7]" in str(caught.value.__cause__)

    drive(FakeEngine({7}), 4, scenario)


def test_wrong_number_of_rows_is_a_failure() -> None:
    class Short(FakeEngine):
        def predict(self, pictures: Pixels) -> Probabilities:
            return super().predict(pictures)[1:]

    async def scenario(batcher: Batcher) -> None:
        found = await asyncio.gather(ask(batcher, 1), ask(batcher, 2), return_exceptions=True)
        assert all(isinstance(outcome, InferenceError) for outcome in found)

    drive(Short(), 4, scenario)


def test_close_answers_what_waits_and_takes_no_more() -> None:
    engine = FakeEngine()

    async def scenario(batcher: Batcher) -> None:
        with busy(engine):
            callers = [ask(batcher, identity) for identity in range(10)]
            await arrival(engine)
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0)  # lets it begin to close
            with pytest.raises(ClosingError):
                await batcher.predict(FakeEngine.picture(99))
        await closing
        assert [(await caller).tolist() for caller in callers] == [[identity] for identity in range(10)]

    drive(engine, 4, scenario)


def test_nobody_is_left_waiting_when_the_engine_ends_its_thread() -> None:
    class Deadly(FakeEngine):
        def predict(self, pictures: Pixels) -> Probabilities:
            raise asyncio.CancelledError(f"{len(pictures)} pictures")

    async def scenario(batcher: Batcher) -> None:
        found = await asyncio.gather(*(ask(batcher, identity) for identity in range(5)), return_exceptions=True)
        assert all(isinstance(outcome, ClosingError) for outcome in found)
        with pytest.raises(ClosingError):
            await batcher.predict(FakeEngine.picture(9))

    drive(Deadly(), 2, scenario)
