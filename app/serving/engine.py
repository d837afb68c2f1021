"""Engines: what computes a batch. One interface, one implementation for each way to run a network."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from training import export
from training.errors import ArtifactError

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


class Engine(Protocol):
    """Computes batches, one at a time, from whichever thread calls it.

    Attributes:
        name: what kind of engine it is, for people.
    """

    name: str

    def load(self) -> None:
        """Read the network into memory.

        Raises:
            ArtifactError: it cannot be used.
        """

    def warm_up(self, max_batch: int) -> None:
        """Compute batches of one and of `max_batch` pictures, so that the first request is as quick as later ones.

        Raises:
            ArtifactError: the network fails, or its answers have the wrong shape.
        """

    def predict(self, pictures: Pixels) -> Probabilities:
        """Probabilities float32 [N, classes] of pictures uint8 [N, 3, size, size], RGB."""


class TorchScriptEngine:
    """Runs the TorchScript file of an artifact.

    Args:
        path: the file, verified before.
        size: side of the pictures it takes, in pixels.
        classes: number of classes it answers with.
        device: where it runs.
    """

    name = "torchscript"

    def __init__(self, path: Path, size: int, classes: int, device: torch.device) -> None:
        self._path = path
        self._size = size
        self._classes = classes
        self._device = device
        self._script: torch.jit.ScriptModule | None = None

    def load(self) -> None:
        self._script = export.load_script(self._path, self._device)

    def warm_up(self, max_batch: int) -> None:
        # The first two runs of a script are profiled and compiled; the third is as quick as any later one.
        for batch in (1, 1, max_batch):
            pictures = np.zeros((batch, 3, self._size, self._size), np.uint8)
            try:
                shape = self.predict(pictures).shape
            except RuntimeError as error:
                raise ArtifactError(f"{self._path} fails on a batch of {batch} pictures: {error}") from error
            if shape != (batch, self._classes):
                raise ArtifactError(
                    f"{self._path} answers {batch} pictures with the shape {shape}, and its manifest names "
                    f"{self._classes} classes. Export the model anew."
                )

    @torch.inference_mode()
    def predict(self, pictures: Pixels) -> Probabilities:
        if self._script is None:
            raise RuntimeError("The engine was not loaded. Call load() first.")
        logits: torch.Tensor = self._script(torch.from_numpy(pictures).to(self._device))
        probabilities: Probabilities = logits.softmax(1).cpu().numpy()
        return probabilities
