"""Decoding: small pictures at once, larger ones off the event loop and within a budget of pixels."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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
            opened = await asyncio.wrap_future(self._submit(timing, picture.open_scaled, data, size, self._max_pixels))
            held = await self._budget.acquire(_pixels(opened))
            return await asyncio.wrap_future(self._render(timing, opened, size, held))
        finally:
            timing.queue = perf_counter() - asked - (timing.decode - before)

    def close(self) -> None:
        """Let go of the threads; pictures that still wait are not decoded."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _render(self, timing: Timing, opened: Image, size: int, held: int) -> Future[Pixels]:
        """Decode in a thread, which gives back what it holds of the budget when it ends: it may outlast its caller."""
        loop = asyncio.get_running_loop()

        def give_back(_: Future[Pixels]) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(self._budget.release, held)

        try:
            work = self._submit(timing, picture.render, opened, size)
        except RuntimeError:  # the threads were let go of
            self._budget.release(held)
            raise
        work.add_done_callback(give_back)
        return work

    def _submit(self, timing: Timing, function: Callable[[*Ts], T], *arguments: *Ts) -> Future[T]:
        """Have a thread call a function. It does not, if whoever waits for it is gone before it begins."""
        return self._threads.submit(lambda: _timed(timing, function, *arguments))


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

    async def acquire(self, amount: int) -> int:
        """Wait until there is room for `amount`; returns what has to be released."""
        amount = min(amount, self._limit)
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
        return amount

    def release(self, amount: int) -> None:
        """Give back what `acquire` returned; belongs to the event loop."""
        self._held -= amount
        self._serve()

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
