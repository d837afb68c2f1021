"""Which processors tests run on: each process of the suite has one, and so have the processes that it starts.

Networks as small as those of the tests take twice the processor time on two threads, which mostly wait for each other.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ABLE = hasattr(os, "sched_setaffinity")
ALL = os.sched_getaffinity(0) if _ABLE else set()


def keep_to_one() -> None:
    """Keep this process to one processor; those of a suite that runs in several take turns. Call it before torch is."""
    assert "torch" not in sys.modules, "torch has counted all processors already: import it later"
    if _ABLE:
        number = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{os.getpid()}").removeprefix("gw"))
        os.sched_setaffinity(0, {sorted(ALL)[number % len(ALL)]})


def use_all() -> None:
    """Let this process, and what it starts from now on, run on all processors."""
    if _ABLE:
        os.sched_setaffinity(0, ALL)


@contextmanager
def every() -> Iterator[None]:
    """Let this process, and what it starts inside the block, run on all processors."""
    if not _ABLE:
        yield
        return
    before = os.sched_getaffinity(0)
    use_all()
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
