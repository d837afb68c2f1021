"""Which processors this process's threads use: all of them, or the event loop one of its own while others train."""

import os
import threading
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from training import machine

_TWO = 2
_BUSY, _QUIET = 0.05, 0.02  # processors that low-priority work keeps busy, above and below which threads are placed
_NICE_FIELD = 2  # of the first line, proc_stat(5): user mode with low priority, which idle scheduling counts as too

_STAT = Path("/proc/stat")
_ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

_exempt: set[int] = set()  # native ids of threads that are not placed now
_placing = threading.Lock()


class Placement:
    """Keeps the event loop from waiting behind the engine while work of low priority, a fine-tune, fills the machine.

    Linux lets a thread that wakes interrupt such work at once, but looks for a processor where it may do so only as
    long as the processors are not busy on average (`SIS_UTIL` in kernel/sched/fair.c), and a fine-tune keeps them busy.
    Threads of the service then queue behind each other on one processor while the other trains. On two processors
    the event loop therefore keeps to one and all other threads to the other for as long: the p99 of half a load was
    2.1 times as long beside a fine-tune without that, and is as long as without one now. Where there are more, threads
    find the processor that they had before. Nothing is placed for good, as that would put the threads of two services
    on the same processor.

    Belongs to the thread of the event loop.

    Args:
        processors: that it divides; nothing is ever placed unless there are two of them.
        stat: where the kernel counts processor time.

    Attributes:
        placed: whether all threads but that of the event loop share one processor now.
    """

    def __init__(self, processors: AbstractSet[int], stat: Path = _STAT) -> None:
        self._processors = processors if len(processors) == _TWO and stat.exists() else set()
        self._stat = stat
        self._loop = threading.get_native_id()
        self.placed = False
        self._seen, self._at = low_priority_seconds(stat) if self._processors else 0.0, monotonic()

    def follow(self) -> None:
        """Place the threads, new ones too, or let go of them, by what has run since the last call."""
        if not self._processors:
            return
        before, since = self._seen, self._at
        self._seen, self._at = low_priority_seconds(self._stat), monotonic()
        if self._seen - before > (_QUIET if self.placed else _BUSY) * (self._at - since):
            self._place(others={min(self._processors)}, loop={max(self._processors)})
            self.placed = True
        else:
            self.release()

    def release(self) -> None:
        """Let all threads use all processors."""
        if self.placed:
            self._place(self._processors, self._processors)
            self.placed = False

    def _place(self, others: AbstractSet[int], loop: AbstractSet[int]) -> None:
        with _placing:
            for thread in {int(entry.name) for entry in Path("/proc/self/task").iterdir()} - _exempt:
                with suppress(ProcessLookupError):  # it has ended since
                    os.sched_setaffinity(thread, loop if thread == self._loop else others)


def to_divide(processes: int) -> AbstractSet[int]:
    """The processors that one of several serving processes may divide: the whole machine's, or none.

    Several processes would put their event loops on the same processor, as would somebody else's service.
    """
    whole = len(_ALL) == os.cpu_count() == machine.processors()
    return _ALL if processes == 1 and whole else set()


def low_priority_seconds(stat: Path = _STAT) -> float:
    """Processor time that work of low priority has taken on this machine since its start."""
    ticks = stat.read_text().split("\n", 1)[0].split()[_NICE_FIELD]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


@contextmanager
def unplaced() -> Iterator[None]:
    """Inside the block this thread, and what it starts meanwhile, has all processors, whatever is placed."""
    thread = threading.get_native_id()
    with _placing:
        _exempt.add(thread)
        if _ALL:
            os.sched_setaffinity(0, _ALL)
    try:
        yield
    finally:
        with _placing:
            _exempt.discard(thread)
