import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.serving import placement
from app.serving.placement import Placement
from tests import processors

ALL = sorted(processors.ALL)
TICKS = os.sysconf("SC_CLK_TCK")

pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="needs two processors that a process can choose from")


@pytest.fixture
def two() -> Iterator[set[int]]:
    """Two processors, which this process has for itself."""
    before = os.sched_getaffinity(0)
    chosen = set(ALL[:2])
    os.sched_setaffinity(0, chosen)
    yield chosen
    os.sched_setaffinity(0, before)


@pytest.fixture
def stat(tmp_path: Path) -> Path:
    """A count of processor time."""
    path = tmp_path / "stat"
    path.write_text("cpu  900 0 300 5000 0 0 0 0 0 0\ncpu0 1 2 3\n")
    return path


@contextmanager
def thread() -> Iterator[int]:
    """Another thread of this process: its native id."""
    ending = threading.Event()
    started = threading.Thread(target=ending.wait)
    started.start()
    assert started.native_id
    try:
        yield started.native_id
    finally:
        ending.set()
        started.join()


def train(stat: Path) -> None:
    """Count processor time of low priority: more than passes in any test."""
    fields = stat.read_text().split(" ")
    fields[3] = str(int(fields[3]) + 1000 * TICKS)
    stat.write_text(" ".join(fields))


def test_event_loop_has_a_processor_of_its_own_while_others_train(stat: Path, two: set[int]) -> None:
    placed = Placement(two, stat)
    with thread() as other:
        placed.follow()
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == two
        train(stat)
        placed.follow()
        assert os.sched_getaffinity(0) == {max(two)}
        assert os.sched_getaffinity(other) == {min(two)}
        placed.follow()
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == two


def test_release_lets_threads_go(stat: Path, two: set[int]) -> None:
    placed = Placement(two, stat)
    with thread() as other:
        train(stat)
        placed.follow()
        placed.release()
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == two


def test_threads_that_the_event_loop_starts_meanwhile_are_placed_too(stat: Path, two: set[int]) -> None:
    placed = Placement(two, stat)
    train(stat)
    placed.follow()
    with thread() as other:
        train(stat)
        placed.follow()
        assert os.sched_getaffinity(other) == {min(two)}
    placed.release()


def test_process_started_meanwhile_may_use_all_processors() -> None:
    program = """
import os
from app.serving import placement
everything = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(everything)})
placement.use_all_processors()
assert os.sched_getaffinity(0) == everything
"""
    with processors.every():
        subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nothing_is_placed_but_on_two_processors(stat: Path, two: set[int], count: int) -> None:
    placed = Placement(set(range(count)), stat)
    train(stat)
    placed.follow()
    assert os.sched_getaffinity(0) == two


def test_several_serving_processes_have_nothing_to_divide() -> None:
    assert placement.to_divide(2) == set()


def test_kernel_counts_idle_scheduling_as_low_priority() -> None:
    before = placement.low_priority_seconds()
    work = """
import os, time
os.nice(19)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while time.thread_time() < 0.3:
    sum(range(1_000_000))
"""
    subprocess.run([sys.executable, "-c", work], check=True)
    assert placement.low_priority_seconds() - before > 0.2
