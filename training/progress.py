"""Sinks that show or keep how a run goes."""

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from training.errors import InputError
from training.sink import Epoch, Step


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


class Bar:
    """A progress bar on standard error, and a line for every finished epoch."""

    def __init__(self, epochs: int | None = None) -> None:
        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("", total=1.0, epoch=1, epochs=epochs or "?", figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, step: Step) -> None:
        figures = f"{step.images_per_second:,.0f} images/s, {clock(step.eta_seconds)} left"
        if step.loss is not None and step.accuracy is not None:
            figures = f"loss {step.loss:.3f}, accuracy {step.accuracy:.1%}, {figures}"
        self._progress.update(self._task, completed=step.done, epoch=step.epoch, figures=figures)

    def epoch(self, epoch: Epoch) -> None:
        robust = "" if epoch.val_robust_accuracy is None else f"robust {epoch.val_robust_accuracy:.1%}  "
        self._progress.console.print(
            f"epoch {epoch.epoch:>3}/{epoch.epochs}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.2%}  "
            f"validation loss {epoch.val_loss:.4f}  accuracy {epoch.val_accuracy:.2%}  {robust}{clock(epoch.seconds)}",
            highlight=False,
            soft_wrap=True,
        )
        self._progress.update(self._task, epochs=epoch.epochs)


class TensorBoard:
    """Loss, accuracy and time after every epoch as TensorBoard's event files.

    A resumed run replaces the curves of the interrupted one.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an extra
        except ImportError as error:
            raise InputError(f"TensorBoard is missing ({error}). Install it: pip install tensorboard.") from error
        self._writer = SummaryWriter(str(folder), purge_step=0)

    def step(self, step: Step) -> None:
        """Steps are not kept."""

    def epoch(self, epoch: Epoch) -> None:
        for name, value in (
            ("loss/training", epoch.loss),
            ("loss/validation", epoch.val_loss),
            ("accuracy/training", epoch.accuracy),
            ("accuracy/validation", epoch.val_accuracy),
            ("macro F1/validation", epoch.val_macro_f1),
            ("seconds", epoch.seconds),
        ):
            self._writer.add_scalar(name, value, epoch.epoch)
        self._writer.flush()


class JsonLines:
    """A line of JSON for every finished epoch, appended to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def step(self, step: Step) -> None:
        """Steps are not kept."""

    def epoch(self, epoch: Epoch) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(epoch)) + "\n")
