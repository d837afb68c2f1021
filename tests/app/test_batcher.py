"""The batcher, driven with the shipped fake engine: nothing is lost, doubled, mixed up or dragged down by another."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ClosingError, InferenceError
from app.serving.batcher import Batcher
from app.serving.engine import Pixels, Probabilities
from app.serving.fake import FakeEngine

Outcome = Probabilities | BaseException


def drive(engine: FakeEngine, max_batch: int, scenario: Callable[[Batcher], Awaitable[None]]) -> None:
    """Run a scenario with a batcher that is closed at its end."""

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(engine, max_batch, executor)
            try:
                await scenario(batcher)
            finally:
                engine.gate.set()
                await batcher.close()

    asyncio.run(run())


def ask(batcher: Batcher, identity: int) -> asyncio.Task[Probabilities]:
    return asyncio.create_task(batcher.predict(FakeEngine.picture(identity)))


async def arrival(engine: FakeEngine) -> None:
    """Wait until the next batch is at the engine's gate."""
    await asyncio.to_thread(engine.entered.acquire)


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
            engine.gate.clear()
            callers |= {identity: ask(batcher, identity) for identity in identities[start:end]}
            await arrival(engine)
            for identity in leaving.intersection(identities[start:end]):
                callers[identity].cancel()
            engine.gate.set()
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


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 100), max_batch=st.integers(1, 40), leaving=st.sets(st.integers(1, 99), max_size=50))
def test_callers_that_left_cost_nothing(count: int, max_batch: int, leaving: set[int]) -> None:
    engine = FakeEngine()

    async def scenario(batcher: Batcher) -> None:
        engine.gate.clear()
        first = ask(batcher, 0)
        await arrival(engine)
        others = {identity: ask(batcher, identity) for identity in range(1, count)}
        await asyncio.sleep(0)  # lets them begin to wait
        for identity in leaving.intersection(others):
            others[identity].cancel()
        await asyncio.gather(*(task for task in others.values() if task.cancelling()), return_exceptions=True)
        engine.gate.set()
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
        found = await asyncio.gather(*(ask(batcher, identity) for identity in range(count)), return_exceptions=True)
        assert [isinstance(outcome, InferenceError) for outcome in found] == [i == culprit for i in range(count)]

    drive(engine, 64, scenario)
    assert len(engine.batches) <= 1 + 2 * (count - 1).bit_length()


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
        engine.gate.clear()
        callers = [ask(batcher, identity) for identity in range(10)]
        await arrival(engine)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)  # lets it begin to close
        with pytest.raises(ClosingError):
            await batcher.predict(FakeEngine.picture(99))
        engine.gate.set()
        await closing
        assert [caller.result().tolist() for caller in callers] == [[identity] for identity in range(10)]

    drive(engine, 4, scenario)


def test_nobody_is_left_waiting_when_the_batcher_dies() -> None:
    class Deadly(FakeEngine):
        def predict(self, pictures: Pixels) -> Probabilities:
            raise asyncio.CancelledError(f"{len(pictures)} pictures")

    async def scenario(batcher: Batcher) -> None:
        found = await asyncio.gather(*(ask(batcher, identity) for identity in range(5)), return_exceptions=True)
        assert all(isinstance(outcome, ClosingError) for outcome in found)
        with pytest.raises(ClosingError):
            await batcher.predict(FakeEngine.picture(9))

    drive(Deadly(), 2, scenario)
