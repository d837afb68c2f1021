"""Micro-batching without a timer: an idle engine takes what waits at once; while it is busy the next batch gathers."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from app.errors import ClosingError, InferenceError, ServiceError
from app.serving.engine import Engine, Pixels, Probabilities
from app.telemetry import Timing

log = logging.getLogger(__name__)

Observer = Callable[[int, float], None]

_CLOSED = "This model is being shut down or unloaded. Send the request again."


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    pixels: Pixels
    answer: asyncio.Future[Probabilities]
    timing: Timing
    arrived: float  # of time.perf_counter()


class Batcher:
    """Gathers the pictures of many callers into batches, and gives each caller the row of its own picture.

    Belongs to the event loop in which it is made. A caller that is cancelled before its picture is in a batch costs no
    computation. A batch that fails is halved until the picture that made it fail is alone; the others get their
    answers.

    Args:
        engine: loaded and warmed up.
        max_batch: most pictures in a batch.
        executor: where the engine runs; its threads are what limits how many batches are computed at a time.
        observe: called with the pictures and the seconds of every batch that was computed.
    """

    def __init__(self, engine: Engine, max_batch: int, executor: Executor, observe: Observer = lambda *_: None) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._executor = executor
        self._observe = observe
        self._waiting: deque[_Request] = deque()
        self._changed = asyncio.Event()
        self._computing = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    @property
    def busy(self) -> bool:
        """Whether pictures are being computed, or wait for it."""
        return self._computing or bool(self._waiting)

    async def predict(self, pixels: Pixels, timing: Timing | None = None) -> Probabilities:
        """Probabilities float32 [classes] of one picture uint8 [3, size, size]; how long it took goes into `timing`.

        Raises:
            InferenceError: the engine fails on this picture.
            ClosingError: the batcher was closed.
        """
        if self._closing:
            raise ClosingError(_CLOSED, 1)
        request = _Request(pixels, self._loop.create_future(), timing or Timing(), perf_counter())
        self._waiting.append(request)
        self._changed.set()
        return await request.answer

    async def close(self) -> None:
        """Take no more pictures, and return when all that were taken are answered."""
        self._closing = True
        self._changed.set()
        await asyncio.wait((self._task,))

    async def _run(self) -> None:
        unanswered: list[_Request] = []
        try:
            while self._waiting or not self._closing:
                if not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                unanswered = self._take()
                self._computing = True
                await self._compute(unanswered)
                self._computing = False
        finally:  # answers nobody unless this task is cancelled or a defect ends it
            self._closing = True
            for request in (*unanswered, *self._waiting):
                if not request.answer.done():
                    request.answer.set_exception(ClosingError(_CLOSED, 1))

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        while self._waiting and len(batch) < self._max_batch:
            request = self._waiting.popleft()
            if not request.answer.done():
                batch.append(request)
        return batch

    async def _compute(self, batch: list[_Request]) -> None:
        parts = [batch]
        while parts:
            part = [request for request in parts.pop() if not request.answer.done()]
            if not part:
                continue
            try:
                rows = await self._loop.run_in_executor(self._executor, self._predict, part)
            except Exception as error:
                if len(part) == 1:
                    log.exception("The engine fails on one picture")
                    _settle(part[0], _failure(error))
                else:
                    log.warning("A batch of %d pictures failed (%r); halving it", len(part), error)
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                for request, row in zip(part, rows, strict=True):
                    _settle(request, row)

    def _predict(self, batch: list[_Request]) -> Probabilities:
        started = perf_counter()
        rows = self._engine.predict(np.stack([request.pixels for request in batch]))
        took = perf_counter() - started
        if len(rows) != len(batch):
            raise ValueError(f"the engine answered {len(batch)} pictures with {len(rows)} rows")
        for request in batch:
            request.timing.batch_wait, request.timing.inference = started - request.arrived, took
        self._observe(len(batch), took)
        return rows


def _settle(request: _Request, outcome: Probabilities | ServiceError) -> None:
    if request.answer.done():  # cancelled while its batch was computed
        return
    if isinstance(outcome, ServiceError):
        request.answer.set_exception(outcome)
    else:
        request.answer.set_result(outcome)


def _failure(error: Exception) -> InferenceError:
    failure = InferenceError("The model failed on this picture. The service's log says why.")
    failure.__cause__ = error
    return failure
