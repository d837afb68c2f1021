"""What a run tells of itself while it goes, and to whom."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Progress inside an epoch: the share of the run that is done, and running figures of this epoch.

    Loss and accuracy are None while there are none yet, as when features are computed for the first layer to train.
    """

    epoch: int
    done: float
    loss: float | None
    accuracy: float | None
    images_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class Epoch:
    """A finished epoch; `seconds` is the training time of the run so far, validation included.

    `val_robust_accuracy` is measured in adversarial training, on a part of the validation split.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    seconds: float
    val_robust_accuracy: float | None = None


class Sink(Protocol):
    """Something that wants to know how a run goes: a progress bar, a log, a job's status.

    What it raises ends the run; the last checkpoint is kept.
    """

    def step(self, step: Step) -> None:
        """Called about once a second."""

    def epoch(self, epoch: Epoch) -> None:
        """Called after every epoch, once its checkpoint is on disk; a resumed run begins with those before it."""


class Watch:
    """Tells the sinks about steps, at most once a second: reading the figures waits for the device."""

    def __init__(self, sinks: Sequence[Sink], epoch: int, epochs: int, before: float) -> None:
        self._sinks, self._epoch, self._epochs, self._before = sinks, epoch, epochs, before
        self._started = self._told = time.perf_counter()

    def after(self, step: int, batches: int, batch: int, total_loss: Tensor, correct: Tensor) -> None:
        """Say that `step` of an epoch's `batches` steps are done, each of `batch` pictures.

        Args:
            total_loss: sum of the steps' losses, float [].
            correct: pictures that were answered rightly, float [].
        """
        now = time.perf_counter()
        if not self._sinks or (now - self._told < 1 and step < batches):
            return
        self._told = now
        done = (self._epoch + step / batches) / self._epochs
        spent = self._before + now - self._started
        figures = Step(
            epoch=self._epoch + 1,
            done=done,
            loss=float(total_loss) / step,
            accuracy=float(correct) / (step * batch),
            images_per_second=step * batch / (now - self._started),
            eta_seconds=spent / done * (1 - done),
        )
        for sink in self._sinks:
            sink.step(figures)
