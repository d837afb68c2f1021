"""Whether work of low priority, such as a fine-tune, keeps the processors of this machine busy."""

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from training import machine

_TWO = 2
_BUSY, _QUIET = 0.05, 0.02  # processors that such work keeps busy, above which it is noticed, and below which forgotten
_NICE_FIELD = 2  # of the first line, proc_stat(5): user mode with low priority, which idle scheduling counts as too

_STAT = Path("/proc/stat")


class Background:
    """Follows how much of the processors goes to work of low priority.

    Args:
        watched: whether it matters; if not, nothing is read and there is never any.
        stat: where the kernel counts processor time.
        clock: seconds, from any beginning.

    Attributes:
        busy: whether there was such work between the last two calls of `follow`.
    """

    def __init__(self, watched: bool, stat: Path = _STAT, clock: Callable[[], float] = monotonic) -> None:
        self._watched = watched and stat.exists()
        self._stat = stat
        self._clock = clock
        self.busy = False
        self._seen, self._at = low_priority_seconds(stat) if self._watched else 0.0, clock()

    def follow(self) -> None:
        """Look at what has run since the last call."""
        if not self._watched:
            return
        before, since = self._seen, self._at
        self._seen, self._at = low_priority_seconds(self._stat), self._clock()
        self.busy = self._seen - before > (_QUIET if self.busy else _BUSY) * (self._at - since)


def shares_two_processors() -> bool:
    """Whether whatever runs on this machine shares two processors with this process, and neither has any other."""
    return os.cpu_count() == machine.processors() == _TWO


def low_priority_seconds(stat: Path = _STAT) -> float:
    """Processor time that work of low priority has taken on this machine since its start."""
    ticks = stat.read_text().split("\n", 1)[0].split()[_NICE_FIELD]
    return int(ticks) / os.sysconf("SC_CLK_TCK")
