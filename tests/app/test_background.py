import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.serving import background
from app.serving.background import Background
from tests import needs, processors
from tests.app.clock import Clock
from tests.app.process import serve

TICKS = os.sysconf("SC_CLK_TCK")
# Keeps a processor busy for some seconds of processor time, as training does.
WORK = (
    sys.executable,
    "-c",
    """
import os, sys, time
os.nice(19)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while time.thread_time() < float(sys.argv[1]):
    sum(range(1_000_000))
""",
)


@pytest.fixture
def stat(tmp_path: Path) -> Path:
    """A count of processor time."""
    path = tmp_path / "stat"
    path.write_text("cpu  900 0 300 5000 0 0 0 0 0 0\ncpu0 1 2 3\n")
    return path


def train(stat: Path, seconds: float) -> None:
    """Count processor time of low priority."""
    fields = stat.read_text().split(" ")
    fields[3] = str(int(fields[3]) + round(seconds * TICKS))
    stat.write_text(" ".join(fields))


def test_work_is_noticed_above_a_twentieth_of_a_processor_and_forgotten_below_a_fiftieth(stat: Path) -> None:
    clock = Clock()
    followed = Background(watched=True, stat=stat, clock=clock)
    seen = []
    for seconds in (0, 4, 6, 4, 3, 1, 3, 100, 0):  # of every hundred
        train(stat, seconds)
        clock.now += 100
        followed.follow()
        seen.append(followed.busy)
    assert seen == [False, False, True, True, True, False, False, True, False]


@pytest.mark.parametrize("watched", [False, True])
def test_nothing_is_read_unless_it_matters_and_the_kernel_counts(tmp_path: Path, stat: Path, watched: bool) -> None:
    followed = Background(watched, tmp_path / "missing" if watched else stat)
    train(stat, 1000)
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
    subprocess.run([*WORK, "0.3"], check=True)
    assert background.low_priority_seconds() - before > 0.2


def test_a_service_says_that_it_divides_its_processors_while_something_of_low_priority_runs(
    models: Path, every_processor: None
) -> None:
    if not background.shares_two_processors():
        pytest.skip("this machine has more or fewer than two processors, or not all of them for this process")
    with serve(models) as server, subprocess.Popen([*WORK, "inf"]) as work:
        try:
            server.wait_logged("Work of low priority runs on this machine")
        finally:
            work.kill()
