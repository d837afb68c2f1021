"""Checkpoints take a small share of a run's time, whatever the disk."""

from pathlib import Path

from training.checkpoint import Checkpoint


def test_the_next_one_is_due_when_twenty_times_as_long_has_passed_as_the_last_one_took(tmp_path: Path) -> None:
    now = 100.0
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, clock=lambda: now)
    assert checkpoint.is_due
    moments = iter((100.0, 100.5))  # begun, and written
    checkpoint.clock = lambda: next(moments)
    checkpoint.write({"epoch": 1})
    checkpoint.clock = lambda: now
    now = 110.4
    assert not checkpoint.is_due
    now = 110.5
    assert checkpoint.is_due
