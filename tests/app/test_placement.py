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
from tests import needs

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def two() -> Iterator[set[int]]:
    """Two processors, which this process has for itself."""
    chosen = needs.two_processors()
    before = os.sched_getaffinity(0)
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
        assert placed.placed
        placed.follow()
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == two
        assert not placed.placed


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


def test_what_asks_for_all_processors_has_them_until_it_is_done(two: set[int], stat: Path) -> None:
    program = """
import os, subprocess, sys, threading
from pathlib import Path
from app.serving import placement
from training import machine

two, stat = set(map(int, sys.argv[2:])), Path(sys.argv[1])
placed = placement.Placement(two, stat)
train = lambda: stat.write_text("cpu 0 %d 0 0" % (10**6 * (1 + int(stat.read_text().split()[2]))))

def load():
    with placement.unplaced():
        asking.set()
        followed.wait()
        assert machine.processors() == len(os.sched_getaffinity(0)) == 2
        subprocess.run([sys.executable, "-c", "import os; assert len(os.sched_getaffinity(0)) == 2"], check=True)
    done.set()
    ending.wait()

asking, followed, done, ending = (threading.Event() for _ in range(4))
thread = threading.Thread(target=load)
train()
placed.follow()
thread.start()
asking.wait()
train()
placed.follow()
followed.set()
assert done.wait(60)
train()
placed.follow()
assert os.sched_getaffinity(thread.native_id) == {min(two)}
ending.set()
"""
    stat.write_text("cpu 0 0 0 0")
    subprocess.run([sys.executable, "-c", program, str(stat), *map(str, two)], check=True)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nothing_is_placed_but_on_two_processors(stat: Path, two: set[int], count: int) -> None:
    placed = Placement(set(range(count)), stat)
    train(stat)
    placed.follow()
    assert os.sched_getaffinity(0) == two


def test_several_serving_processes_have_nothing_to_divide() -> None:
    assert placement.to_divide(2) == set()


def test_kernel_counts_idle_scheduling_as_low_priority() -> None:
    if not hasattr(os, "SCHED_IDLE"):
        pytest.skip("this system has no idle scheduling")
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
