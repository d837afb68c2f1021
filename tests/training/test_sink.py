"""What sinks are told of the steps of a run."""

import torch

from tests.training.runs import Kept
from training.sink import Watch


def test_the_last_step_of_an_epoch_is_told_with_the_figures_so_far() -> None:
    kept = Kept()
    watch = Watch([kept], epoch=1, epochs=4, before=30.0)
    # All within a second: only the last step of an epoch is told then.
    for step in (1, 2, 3):
        watch.after(step, 3, 16, torch.tensor(0.5 * step), torch.tensor(12.0 * step))
    (told,) = kept.steps
    assert (told.epoch, told.done) == (2, 0.5)
    assert (told.loss, told.accuracy) == (0.5, 0.75)
    assert told.images_per_second > 0
    assert told.eta_seconds >= 30.0
