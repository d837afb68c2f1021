"""Engines: what computes a batch. One interface, one implementation for each way to run a network."""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from training.errors import ArtifactError

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Kind = Literal[
    "native-f32",
    "openvino-bf16",
    "openvino-f32",
    "openvino-int8",
    "torchscript-bf16",
    "torchscript-f16",
    "torchscript-f32",
]
# Compute large batches in blocks, beside one of the others.
BlockKind = Literal["native-f32", "openvino-bf16-winograd"]
AnyKind = Kind | BlockKind


class Engine(Protocol):
    """Computes batches, from whichever thread calls it; one at a time unless it says otherwise."""

    def load(self) -> None:
        """Read the network into memory.

        Raises:
            ArtifactError: it cannot be used.
        """

    def warm_up(self, max_batch: int) -> None:
        """Compute batches of one to `max_batch` pictures, so that the first request is as quick as later ones.

        Raises:
            ArtifactError: the network fails, or its answers have the wrong shape.
        """

    def predict(self, pictures: Pixels) -> Probabilities:
        """Probabilities float32 [N, classes] of pictures uint8 [N, 3, size, size], RGB."""


def softmax(logits: Probabilities) -> Probabilities:
    """Probabilities float32 [N, classes] of logits float32 [N, classes]."""
    powers: Probabilities = np.exp(logits - logits.max(1, keepdims=True))
    powers /= powers.sum(1, keepdims=True)
    return powers


def check_shape(engine: Engine, batch: int, size: int, classes: int) -> None:
    """Compute a batch of `batch` black pictures and look at the shape of the answer.

    Raises:
        ArtifactError: the engine fails, or its answer has the wrong shape.
    """
    try:
        shape = engine.predict(np.zeros((batch, 3, size, size), np.uint8)).shape
    except RuntimeError as error:
        raise ArtifactError(f"The network fails on a batch of {batch} pictures: {error}") from error
    if shape != (batch, classes):
        raise ArtifactError(
            f"The network answers {batch} pictures with the shape {shape}, and its manifest names {classes} classes. "
            "Export the model anew."
        )
