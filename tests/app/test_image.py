"""Decoding: the pixels of training, and no more of them at a time than the budget allows."""

import asyncio
import sys
from collections.abc import Iterator
from types import FrameType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.serving.image import Budget, Decoder
from app.telemetry import Timing
from tests.app.pictures import draw, png
from tests.encoding import encode
from training import picture
from training.errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(max_pixels=10_000, threads=2, budget=10_000)
    yield made
    made.close()


def test_pixels_are_those_of_training(decoder: Decoder) -> None:
    formats = ("PNG", "JPEG", "WebP", "GIF", "BMP")
    sides = (48, 100)  # decoded on the event loop, and in a thread
    data = [encode(draw(seed, side, side), format_) for side in sides for seed, format_ in enumerate(formats)]

    async def scenario() -> None:
        found = await asyncio.gather(*(decoder.decode(entry, 32) for entry in data))
        for pixels, entry in zip(found, data, strict=True):
            assert np.array_equal(pixels, picture.decode(entry, 32))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnsupportedImageError),
        (png(1)[:-40], CorruptImageError),
        (encode(draw(1, 101, 100)), ImageTooLargeError),
    ],
)
def test_failure_is_of_its_kind(decoder: Decoder, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        asyncio.run(decoder.decode(data, 32))


def test_picture_whose_caller_has_left_counts_until_its_thread_has_ended() -> None:
    side = 3000
    decoder = Decoder(max_pixels=side * side, threads=2, budget=side * side)
    large, small = encode(Image.new("RGB", (side, side))), encode(draw(1, 100, 100))
    left, after = Timing(), Timing()

    async def scenario() -> None:
        task = asyncio.create_task(decoder.decode(large, 32, left))
        await rendering()
        task.cancel()
        await asyncio.wait((task,))
        opened = left.decode
        await decoder.decode(small, 32, after)
        assert left.decode > opened  # its thread had ended before the other was let in

    asyncio.run(scenario())
    decoder.close()


def test_picture_whose_caller_leaves_before_a_thread_is_free_is_not_decoded() -> None:
    side = 3000
    decoder = Decoder(max_pixels=side * side, threads=1, budget=3 * side * side)
    large = encode(Image.new("RGB", (side, side)))
    timings = [Timing() for _ in range(3)]

    async def scenario() -> None:
        first, *others = [asyncio.create_task(decoder.decode(large, 32, timing)) for timing in timings]
        await rendering()
        opened = [timing.decode for timing in timings[1:]]
        for task in others:
            task.cancel()
        await first
        decoder.close()
        assert [timing.decode for timing in timings[1:]] == opened

    asyncio.run(scenario())


async def rendering() -> None:
    """Return as soon as a thread decodes pixels."""
    while not any(frame.f_code is picture.render.__code__ for frame in frames()):  # noqa: ASYNC110  no event says so
        await asyncio.sleep(0)


def frames() -> Iterator[FrameType]:
    """What every thread is in the midst of, down to its first call."""
    for frame in sys._current_frames().values():
        inner: FrameType | None = frame
        while inner:
            yield inner
            inner = inner.f_back


amounts = st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=30)


@given(amounts=amounts)
def test_budget_is_kept_and_given_back_in_the_order_of_arrival(amounts: list[tuple[int, bool]]) -> None:
    limit = 10
    held: list[int] = []
    served: list[int] = []

    async def hold(budget: Budget, number: int, amount: int, end: asyncio.Event) -> None:
        given = await budget.acquire(amount)
        assert given == min(amount, limit)  # more than the limit is held alone
        held.append(given)
        served.append(number)
        assert sum(held) <= limit
        try:
            await end.wait()
        finally:
            held.remove(given)
            budget.release(given)

    async def scenario() -> None:
        budget = Budget(limit)
        ends = [asyncio.Event() for _ in amounts]
        tasks = [
            asyncio.create_task(hold(budget, number, amount, end))
            for number, ((amount, _), end) in enumerate(zip(amounts, ends, strict=True))
        ]
        await asyncio.sleep(0)
        for (_, stays), task, end in zip(amounts, tasks, ends, strict=True):
            if stays:
                end.set()
            else:
                task.cancel()
            await asyncio.wait((task,))
        last = asyncio.Event()
        last.set()
        await hold(budget, len(amounts), limit, last)

    asyncio.run(scenario())
    assert served == sorted(served)
    assert served[-1] == len(amounts)
