"""What sinks keep of a run."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.progress import TensorBoard
from training.sink import Epoch

EPOCHS = [Epoch(number, 3, 1 / number, 0.5, 2 / number, 0.25, 0.125, 10.0 * number) for number in (1, 2, 3)]


def test_tensorboard_shows_every_epoch_once_when_a_run_was_resumed(tmp_path: Path) -> None:
    for told in (EPOCHS[:2], EPOCHS):  # a resumed run is told of its earlier epochs again
        board = TensorBoard(tmp_path)
        for epoch in told:
            board.epoch(epoch)
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = events.Scalars("loss/validation")
    assert [event.step for event in shown] == [1, 2, 3]
    assert [event.value for event in shown] == pytest.approx([2, 1, 2 / 3])
    assert {"loss/training", "accuracy/training", "accuracy/validation", "seconds"} <= set(events.Tags()["scalars"])
