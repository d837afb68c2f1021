"""Checkpoints: what an interrupted run needs to go on as if it had never stopped."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.errors import InputError, TrainingError

# Writing takes a twentieth of a run's time at most; in return an interruption can cost twenty times what it takes.
_SPACING = 20


@dataclass
class Checkpoint:
    """Where a run's checkpoint lies.

    Attributes:
        path: the file.
        run: what identifies the run, ready for JSON; a resume has to agree with it.
        resume: whether the run goes on from the file.
        clock: seconds, from any beginning.
    """

    path: Path
    run: Mapping[str, Any]
    resume: bool = False
    clock: Callable[[], float] = time.monotonic
    _due: float = field(default=float("-inf"), init=False)

    @property
    def is_due(self) -> bool:
        """Whether enough of the run has passed for the next `write`, by how long the last one took; at first it has."""
        return self.clock() >= self._due

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file in one step: a crash at any moment leaves the old one or the new one.

        Args:
            state: tensors and plain values, nested in dicts and lists.

        Raises:
            TrainingError: the disk is full or cannot be written; the old checkpoint is kept.
        """
        started = self.clock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.path.parent, prefix=".partial-")
            try:
                with os.fdopen(handle, "wb") as file:
                    torch.save({"state": dict(state), "run": dict(self.run)}, file)
                    file.flush()
                    os.fsync(file.fileno())
                Path(partial).replace(self.path)
            finally:
                Path(partial).unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # torch reports a short write as a RuntimeError
            raise TrainingError(
                f"The checkpoint {self.path} cannot be written ({error}). Free some room, then --resume."
            ) from error
        ended = self.clock()
        self._due = ended + _SPACING * (ended - started)

    def read(self) -> dict[str, Any]:
        """Read the state of an interrupted run. No code in the file is run (`weights_only`).

        Raises:
            InputError: there is none, or it belongs to a run that differs; every difference is named.
            TrainingError: the file is damaged.
        """
        if not self.path.exists():
            raise InputError(f"There is no interrupted run to resume: no {self.path}. Leave out --resume.")
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            before, state = saved["run"], saved["state"]
        except Exception as error:  # torch raises a different type for each kind of damage
            raise TrainingError(
                f"The checkpoint {self.path} is damaged ({error}). Delete it and train anew."
            ) from error
        differences = [
            f"{key} was {before.get(key)!r} and is now {value!r}"
            for key, value in self.run.items()
            if before.get(key) != value
        ]
        if differences:
            raise InputError(f"The interrupted run was another one: {'; '.join(differences)}.")
        return dict(state)
