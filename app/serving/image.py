"""Decoding off the event loop, in as many threads as there are processors."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from app.serving.engine import Pixels
from app.telemetry import Timing
from training import machine, picture


class Decoder:
    """Turns encoded pictures into pixels.

    Args:
        max_pixels: most pixels of a picture, width times height.
        processes: how many processes share the processors.
    """

    def __init__(self, max_pixels: int, processes: int) -> None:
        self._max_pixels = max_pixels
        # One picture a thread: this also bounds the memory that decoded pictures take.
        self._threads = ThreadPoolExecutor(max(1, machine.processors() // processes), "decode")

    async def decode(self, data: bytes, size: int, timing: Timing | None = None) -> Pixels:
        """Pixels uint8 [3, size, size], RGB, of an encoded picture; how long it took goes into `timing`.

        Raises:
            training.errors.ImageError: one of its kinds, see `training.picture.decode`.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, data, size, timing or Timing(), perf_counter())

    def close(self) -> None:
        """Let go of the threads; pictures that still wait are not decoded."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _decode(self, data: bytes, size: int, timing: Timing, asked: float) -> Pixels:
        started = perf_counter()
        timing.queue = started - asked
        try:
            return picture.decode(data, size, self._max_pixels)
        finally:
            timing.decode = perf_counter() - started
