import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.serving import background
from app.serving.background import Background
from tests import needs, processors

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def stat(tmp_path: Path) -> Path:
    """A count of processor time."""
    path = tmp_path / "stat"
    path.write_text("cpu  900 0 300 5000 0 0 0 0 0 0\ncpu0 1 2 3\n")
    return path


def train(stat: Path) -> None:
    """Count processor time of low priority: more than passes in any test."""
    fields = stat.read_text().split(" ")
    fields[3] = str(int(fields[3]) + 1000 * TICKS)
    stat.write_text(" ".join(fields))


def test_there_is_work_as_long_as_its_time_grows(stat: Path) -> None:
    followed = Background(watched=True, stat=stat)
    seen = []
    for trains in (False, True, True, False):
        if trains:
            train(stat)
        followed.follow()
        seen.append(followed.busy)
    assert seen == [False, True, True, False]


@pytest.mark.parametrize("watched", [False, True])
def test_nothing_is_read_unless_it_matters_and_the_kernel_counts(tmp_path: Path, stat: Path, watched: bool) -> None:
    followed = Background(watched, tmp_path / "missing" if watched else stat)
    train(stat)
    followed.follow()
    assert not followed.busy


def test_only_a_whole_machine_of_two_processors_is_watched() -> None:
    one = min(needs.two_processors())
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {one})
        assert not background.shares_two_processors()
        os.sched_setaffinity(0, processors.ALL)
        assert background.shares_two_processors() == (os.cpu_count() == len(processors.ALL) == 2)
    finally:
        os.sched_setaffinity(0, before)


def test_kernel_counts_idle_scheduling_as_low_priority() -> None:
    if not hasattr(os, "SCHED_IDLE"):
        pytest.skip("this system has no idle scheduling")
    before = background.low_priority_seconds()
    work = """
import os, time
os.nice(19)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while time.thread_time() < 0.3:
    sum(range(1_000_000))
"""
    subprocess.run([sys.executable, "-c", work], check=True)
    assert background.low_priority_seconds() - before > 0.2
