"""Probe pictures: what an artifact brings along so that whatever runs it can show that it answers rightly."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from training.errors import ArtifactError

PROBE = "probe.safetensors"
PICTURES = 128


@dataclass(frozen=True)
class Probe:
    """Pictures uint8 [N, 3, size, size] of the training split, and their probabilities float32 [N, classes]."""

    pictures: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


def choose(available: int) -> NDArray[np.int64]:
    """Numbers of at most `PICTURES` pictures, the same ones in every run."""
    return np.sort(np.random.default_rng(0).permutation(available)[:PICTURES])


def write(path: Path, probe: Probe) -> None:
    """Write a probe beside the file that gave its probabilities."""
    path.write_bytes(save({"pictures": probe.pictures, "probabilities": probe.probabilities}))


def read(path: Path) -> Probe:
    """Read what `write` wrote.

    Raises:
        ArtifactError: the file is no probe.
    """
    try:
        found = load_file(path)
        return Probe(found["pictures"], found["probabilities"])
    except (SafetensorError, KeyError) as error:
        raise ArtifactError(f"{path} is not a probe ({error}). Restore the version or export it anew.") from error
