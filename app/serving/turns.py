"""The two threads that engines run on, and whose turn it is: one batch with all processors, or two with half each."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, Semaphore
from typing import Literal

HALVES = 2

Thread = Literal[0, 1]


class Turns:
    """Keeps batches, of all models, from taking the processors from each other. Who comes first is served first.

    Args:
        executors: of one thread each; made unless given.

    Attributes:
        apart: whether every batch is computed with half of the processors now, as while something of low priority
            runs. A thread that waits for the others of its batch gives its processor up (`sched_yield(2)`, as TBB
            does), which such work then keeps for milliseconds, whatever its priority.
    """

    def __init__(self, *executors: Executor) -> None:
        self._executors = executors or [ThreadPoolExecutor(1, "engine") for _ in range(HALVES)]
        self._next = Lock()  # held by who waits, so that nobody who asks for less gets past
        self._free = Semaphore(HALVES)
        self.apart = False

    def submit(self, thread: Thread, work: Callable[[Thread], None]) -> None:
        """Have one of the threads call `work(thread)` when it is done with what it was given before."""
        self._executors[thread].submit(work, thread)

    @contextmanager
    def take(self, halves: int) -> Iterator[None]:
        """Wait for one half of the processors, or for both, and have them until the block ends."""
        with self._next:
            for _ in range(halves):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(halves)

    def shutdown(self) -> None:
        """Let go of the threads when they have done what they were given."""
        for executor in self._executors:
            executor.shutdown()
