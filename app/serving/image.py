"""Decoding: small pictures at once, larger ones off the event loop and within a budget of pixels."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TypeVar, TypeVarTuple

from PIL.Image import Image

from app.serving.engine import Pixels
from app.telemetry import Timing
from training import compiled, picture

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Files and pictures up to here are decoded on the event loop: it takes a fraction of a millisecond, about as long as
# handing them to a thread and back, which cannot run beside the event loop anyway while it holds Python's lock.
_SMALL_BYTES = 16_384
_SMALL_PIXELS = 64 * 64


class Decoder:
    """Turns encoded pictures into pixels.

    Args:
        max_pixels: most pixels of a picture, width times height.
        threads: pictures that are decoded at a time.
        budget: most pixels that are decoded at a time; a picture that has more is decoded alone.
    """

    def __init__(self, max_pixels: int, threads: int, budget: int) -> None:
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(threads, "decode")
        self._budget = Budget(budget)
        if not compiled.AVAILABLE:
            log.warning(
                "Pictures take twice as long to decode as they could: the package was installed without a C compiler. "
                "Install one (apt-get install gcc libc6-dev python3-dev), and the package again (make clean install)."
            )

    async def decode(self, data: bytes, size: int, timing: Timing | None = None) -> Pixels:
        """Pixels uint8 [3, size, size], RGB, of an encoded picture; how long it took goes into `timing`.

        Raises:
            training.errors.ImageError: one of its kinds, see `training.picture.decode`.
        """
        timing = timing or Timing()
        small = self.decode_small(data, size, timing)
        return await self.decode_large(data, size, timing) if small is None else small

    def decode_small(self, data: bytes, size: int, timing: Timing) -> Pixels | None:
        """As `decode`, of a picture that is decoded on the event loop; None for a larger one."""
        if len(data) > _SMALL_BYTES:
            return None
        plain = _timed(timing, picture.decode_plain, data, size, self._max_pixels)
        if plain is not None:
            return plain
        opened = _timed(timing, picture.open_scaled, data, size, self._max_pixels)
        return _timed(timing, picture.render, opened, size) if _pixels(opened) <= _SMALL_PIXELS else None

    async def decode_large(self, data: bytes, size: int, timing: Timing) -> Pixels:
        """As `decode`, of any picture, in a thread and within the budget."""
        asked, before = perf_counter(), timing.decode
        try:
            opened = await self._run(timing, picture.open_scaled, data, size, self._max_pixels)
            async with self._budget.hold(_pixels(opened)):
                return await self._run(timing, picture.render, opened, size)
        finally:
            timing.queue = perf_counter() - asked - (timing.decode - before)

    def close(self) -> None:
        """Let go of the threads; pictures that still wait are not decoded."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _run(self, timing: Timing, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _timed, timing, function, *arguments)


def _timed(timing: Timing, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    started = perf_counter()
    try:
        return function(*arguments)
    finally:
        timing.decode += perf_counter() - started


class Budget:
    """Bounds the sum of what is held at one time; who waits is served in the order of arrival.

    Args:
        limit: the largest sum; somebody who wants more is served alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Wait until there is room for `amount`, and hold it until the block ends."""
        amount = min(amount, self._limit)
        await self._acquire(amount)
        try:
            yield
        finally:
            self._held -= amount
            self._serve()

    async def _acquire(self, amount: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was served in the same moment
                self._held -= amount
            self._serve()
            raise

    def _serve(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.done():
                if self._held + amount > self._limit:
                    return
                self._held += amount
                turn.set_result(None)
            self._waiting.popleft()


def _pixels(opened: Image) -> int:
    return opened.width * opened.height
