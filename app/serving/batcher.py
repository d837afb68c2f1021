"""Micro-batching: an idle engine takes what has arrived; while it is busy the next batch gathers."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from threading import Lock
from time import perf_counter

import numpy as np

from app.errors import ClosingError, DeadlineError, InferenceError, ServiceError
from app.serving.curve import Curve
from app.serving.engine import Engine, Pixels, Probabilities
from app.serving.turns import HALVES, Thread, Turns
from app.telemetry import Timing

log = logging.getLogger(__name__)

Observer = Callable[[int, float], None]

# Times what a picture costs in the best batch: a smaller batch waits for what has arrived and was not looked at yet, a
# larger one for nothing; of a network that costs more than Python, one in between waits for those who are expected.
_DEAR, _CHEAP, _FULL = 2, 1.4, 1.1

# Share of half of what is in work that is computed at once by a network that costs less than Python.
_NEARLY = 0.5

# They are waited for as long as this share of what their batch will take.
_LINGER = 0.1

_NOBODY: Set[Thread] = frozenset()
_FIRST: Set[Thread] = frozenset({0})
_BOTH: Set[Thread] = frozenset({0, 1})

_CLOSED = "This model is being shut down or unloaded. Send the request again."


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    pixels: Pixels
    answer: asyncio.Future[Probabilities]
    deadline: float
    timing: Timing
    arrived: float  # of time.perf_counter()


Outcome = Probabilities | ServiceError


class Coming:
    """Counts the pictures that are being decoded: each of them enters for as long as that takes.

    Args:
        less: called when there is one less.
    """

    def __init__(self, less: Callable[[], None]) -> None:
        self.count = 0
        self._less = less

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        self._less()


class Batcher:
    """Gathers the pictures of many callers into batches, and gives each caller the row of its own picture.

    Belongs to the event loop in which it is made. The engine's threads take their batches themselves, so that a busy
    event loop keeps no engine waiting; only a batch so small that its pictures cost too much, or that is less than half
    of what is in work, is put off until the event loop has looked at all that has arrived, and a small part of its time
    longer if the network costs more than that: who got an answer just now often asks again. While more pictures are
    `coming`, such a batch waits for them, too, but nobody waits longer than the own picture took to decode: photos,
    whose decoding takes the processors in any case, gather, and a small picture is computed at once. A batch holds at
    most the size at which the cost curve is flat; instead of one that takes long, two are computed side by side. A
    caller that is cancelled before its picture is in a batch, or whose deadline cannot be met any more, costs no
    computation. A batch that fails is halved until the picture that made it fail is alone; the others get answers.

    Args:
        engine: loaded and warmed up.
        curve: what its batches cost; `curve.batch` is the largest that is made.
        turns: gives the engine its threads, as those of the other models.
        observe: called with the pictures and the seconds of every batch that was computed, from the engine's thread.
        halves: computes two batches at a time, each with half of the threads; without it one is computed at a time.
        long: whether its batches become so large that they are worth dividing; if not, they are only kept apart.
        clock: seconds, of the same origin as deadlines; the event loop's own unless given.

    Attributes:
        coming: entered while a thread decodes a picture for which `predict` will be called.
    """

    def __init__(
        self,
        engine: Engine,
        curve: Curve,
        turns: Turns,
        observe: Observer = lambda *_: None,
        halves: Engine | None = None,
        long: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._engine = engine
        self._curve = curve
        self._turns = turns
        self._observe = observe
        self._halves = halves
        self._long = long
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._waiting: deque[_Request] = deque()
        self._awake: set[Thread] = set()  # that compute, or are about to look for work
        self._computing: list[int] = []  # pictures in each of the batches that are computed
        self._halving = False  # whether it is with half of the processors
        self._lock = Lock()  # guards these three together with what waits
        self._whole = curve.whole(divided=halves is not None and long)
        self._least, self._most = curve.within(_DEAR), curve.within(_CHEAP)
        self._full = curve.within(_FULL if curve.dear else _CHEAP)
        self._worthwhile = self._least
        self._expected = 0  # pictures in the next batch
        self.coming = Coming(self._look)
        self._waking = False  # whether the event loop is about to call `_wake`
        self._alarm: asyncio.TimerHandle | None = None  # calls `_wake` when nobody waits for what is coming any more
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def busy(self) -> bool:
        """Whether pictures are being computed, or wait for it."""
        return not self._idle.is_set()

    async def predict(self, pixels: Pixels, timing: Timing | None = None, deadline: float = math.inf) -> Probabilities:
        """Probabilities float32 [classes] of one picture uint8 [3, size, size].

        Args:
            pixels: uint8 [3, size, size].
            timing: takes note of how long it took.
            deadline: time of the clock after which the answer is worth nothing.

        Raises:
            InferenceError: the engine fails on this picture.
            DeadlineError: the answer would come after the deadline.
            ClosingError: the batcher was closed.
        """
        if self._closing:
            raise ClosingError(_CLOSED, 1)
        request = _Request(pixels, self._loop.create_future(), deadline, timing or Timing(), perf_counter())
        self._idle.clear()
        with self._lock:
            self._waiting.append(request)
            starting = self._starting(self._enough())
        if starting:
            self._start(starting)
        else:
            self._look()
        return await request.answer

    async def close(self) -> None:
        """Take no more pictures, and return when all that were taken are answered."""
        self._closing = True
        self._look()  # nobody comes for whom somebody could wait
        await self._idle.wait()

    def _look(self) -> None:
        """Have idle threads look for work when the event loop has looked at all that has arrived."""
        if not self._waking and self._spare:
            self._waking = True
            self._loop.call_soon(self._wake)

    def _enough(self) -> int:
        """How many pictures are computed without waiting for more."""
        if not self.coming.count:
            return self._worthwhile
        return min(max(self._share(), 1), self._most)

    def _share(self, among: int = HALVES) -> int:
        """Pictures of one of so many equal batches, rounded up, if all that are in work were divided."""
        return math.ceil((len(self._waiting) + sum(self._computing) + self.coming.count) / among)

    def _starting(self, least: int) -> Set[Thread]:
        """Which threads begin with what waits, if it is `least` pictures or more; they are awake from now on."""
        if len(self._waiting) < least:
            return _NOBODY
        starting = set(sorted(self._free())[: 1 if self.coming.count else len(self._waiting)])
        self._awake |= starting
        return starting

    def _free(self) -> Set[Thread]:
        """Threads that could begin with what waits."""
        return _BOTH - self._awake if self._divides() else _NOBODY if self._awake else _FIRST

    @property
    def _spare(self) -> bool:
        """Whether a thread could begin with little; while one computes, the other leaves its processor to decoding."""
        decoding = self.coming.count > 0 and len(self._awake) > 0 and not self._apart
        return not decoding and len(self._free()) > 0

    @property
    def _apart(self) -> bool:
        """Whether every batch is computed with half of the processors."""
        return self._halves is not None and self._turns.apart

    def _divides(self) -> bool:
        """Whether what waits is computed in halves: fewer pictures are enough once there is one, so that it lasts.

        While pictures are decoded, which takes the other processors, all batches are.
        """
        if self._apart:
            return True
        work = len(self._waiting) * (HALVES if self._halving else 1)
        return self._halves is not None and self._long and (self.coming.count > 0 or work > self._curve.undivided)

    def _start(self, threads: Set[Thread]) -> None:
        for thread in threads:
            self._turns.submit(thread, self._work)

    def _work(self, thread: Thread) -> None:
        """Compute one batch, then go behind whatever else waits for this thread, or wait for more pictures."""
        with self._lock:
            half = self._halves if self._computing or self._divides() else None
        with self._turns.take(1 if half else HALVES):
            with self._lock:
                batch, late = self._take(HALVES if half else 1)
                self._computing.append(len(batch))
                self._halving = half is not None
            if late:
                self._loop.call_soon_threadsafe(_settle, late, [DeadlineError() for _ in late])
            try:
                outcomes = self._compute(half or self._engine, batch)
            except BaseException as error:
                log.critical("The engine ended its thread", exc_info=error)
                self._loop.call_soon_threadsafe(self._die, thread, batch)
                return
            finally:
                with self._lock:
                    self._computing.remove(len(batch))
                    self._halving &= bool(self._computing)
        with self._lock:
            self._awake.remove(thread)
            self._expect(len(batch))
            starting = self._starting(self._enough())
        self._loop.call_soon_threadsafe(_settle, batch, outcomes)
        self._start(starting)
        if not starting:
            self._loop.call_soon_threadsafe(self._wake)

    def _expect(self, answered: int) -> None:
        """Choose the next batch that is worthwhile: half of all that is in work, if those who get answers come back.

        Then one half is computed while the event loop answers the other and reads what follows. Where that takes as
        long as the network, somewhat less than half is enough, because halves are never quite alike.
        """
        half = (answered + sum(self._computing) + len(self._waiting)) // 2
        self._expected = min(half, self._full)
        if self._curve.dear:
            self._worthwhile = max(self._expected, self._least)
        else:
            self._worthwhile = max(math.ceil(_NEARLY * self._expected), 1)

    def _wake(self) -> None:
        """Let idle threads begin with what waits, however little it is, unless it waits for what is coming."""
        self._waking = False
        if self._alarm:
            self._alarm.cancel()
        with self._lock:
            patience = self._patience()
            starting = self._starting(self._enough() if patience > 0 else 1)
        self._start(starting)
        if starting or not self._spare:
            return  # a thread has `_wake` called when it finds too little
        if self._waiting:
            self._alarm = self._loop.call_later(patience, self._wake)
        elif not self._awake:
            self._idle.set()

    def _patience(self) -> float:
        """Seconds until somebody has waited long enough for others.

        That is as long as the own picture took to decode while others are decoded, and otherwise a small part of what
        the batch will take. A caller who has set a deadline does not wait.
        """
        if self._closing or any(request.deadline < math.inf for request in self._waiting):
            return 0
        if self.coming.count:
            ends = (each.arrived + each.timing.queue + each.timing.decode for each in self._waiting)
        elif self._curve.dear and len(self._waiting) < self._expected:
            linger = _LINGER * (HALVES if self._divides() else 1) * self._curve.estimate(self._expected)
            ends = (each.arrived + linger for each in self._waiting)
        else:
            return 0
        return min(ends, default=0) - perf_counter()

    def _take(self, sharing: int) -> tuple[list[_Request], list[_Request]]:
        """The next batch, and the requests before it whose deadlines cannot be met.

        Args:
            sharing: batches that share the processors, those that are computed already included.
        """
        now = self._clock()
        # Halves that are alike keep their callers waiting alike.
        limit = min(self._share(sharing), self._curve.batch if sharing > 1 else self._whole)
        batch: list[_Request] = []
        late: list[_Request] = []
        earliest = math.inf
        while self._waiting and len(batch) < limit:
            request = self._waiting[0]
            if not request.answer.done():
                earliest = min(earliest, request.deadline)
                in_time = now + sharing * self._curve.estimate(len(batch) + 1) <= earliest
                if batch and not in_time:
                    break  # a larger batch would be too late for somebody in it
                if in_time:
                    batch.append(request)
                else:
                    late.append(request)
                    earliest = math.inf
            self._waiting.popleft()
        return batch, late

    def _compute(self, engine: Engine, batch: Sequence[_Request]) -> list[Outcome]:
        if not batch:
            return []
        try:
            return list(self._predict(engine, batch))
        except Exception as error:
            if len(batch) == 1:
                log.exception("The engine fails on one picture")
                return [_failure(error)]
            log.warning("A batch of %d pictures failed (%r); halving it", len(batch), error)
            middle = len(batch) // 2
            return self._compute(engine, batch[:middle]) + self._compute(engine, batch[middle:])

    def _predict(self, engine: Engine, batch: Sequence[_Request]) -> Probabilities:
        started = perf_counter()
        rows = engine.predict(_joined([request.pixels for request in batch]))
        took = perf_counter() - started
        if len(rows) != len(batch):
            raise ValueError(f"the engine answered {len(batch)} pictures with {len(rows)} rows")
        for request in batch:
            request.timing.batch_wait, request.timing.inference = started - request.arrived, took
        self._observe(len(batch), took)
        return rows

    def _die(self, thread: Thread, batch: Sequence[_Request]) -> None:
        self._closing = True
        with self._lock:
            self._awake.remove(thread)
            lost = [*batch, *self._waiting]
            self._waiting.clear()
        _settle(lost, [ClosingError(_CLOSED, 1) for _ in lost])
        self._wake()


def _joined(pictures: Sequence[Pixels]) -> Pixels:
    """A batch, uint8 [N, 3, size, size].

    As `numpy.stack`, which lets another thread take Python's lock, and waits to get it back, at every picture.
    """
    return np.frombuffer(bytearray().join(picture.data for picture in pictures), np.uint8).reshape(
        len(pictures), *pictures[0].shape
    )


def _settle(batch: Sequence[_Request], outcomes: Sequence[Outcome]) -> None:
    for request, outcome in zip(batch, outcomes, strict=True):
        if request.answer.done():  # cancelled while its batch was computed
            continue
        if isinstance(outcome, ServiceError):
            request.answer.set_exception(outcome)
        else:
            request.answer.set_result(outcome)


def _failure(error: Exception) -> InferenceError:
    failure = InferenceError("The model failed on this picture. The service's log says why.")
    failure.__cause__ = error
    return failure
