"""Prints what versions cost and how well they answer on each engine.

    python -m bench.engines cifar10@1 cifar10@2 --engine openvino-bf16 --engine openvino-f32 --data cifar10

The cost is milliseconds of processor time of a batch, one thread, the least of many; the engines take turns, so that
whatever else the machine does weighs on all alike. With `--data`, how many of its test pictures are answered rightly,
and the calibration error.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from app.serving import candidates
from app.serving.candidates import Place
from app.serving.engine import Engine, Kind, Pixels
from training import artifact, evaluate, machine, probe, scoring
from training.artifact import Manifest

_SIZES = (1, 8, 32)
_PICTURES = 1000  # that each engine computes with each size


@dataclass(frozen=True)
class _Opened:
    """A version on an engine, and the pictures that it brings."""

    name: str
    manifest: Manifest
    engine: Engine
    brought: Pixels

    def batch(self, size: int) -> None:
        """Compute so many of the pictures."""
        self.engine.predict(np.resize(self.brought, (size, *self.brought.shape[1:])))

    def judged(self, source: str) -> str:
        """How well the test pictures of a source are answered."""
        split, _ = scoring.pictures(self.manifest, source, "test")
        batches = (self.engine.predict(images.numpy()) for images in split.images.split(_SIZES[-1]))
        logits = torch.from_numpy(np.concatenate(list(batches))).log()
        return (
            f"{evaluate.accuracy(logits, split.labels):.2%} of {len(split):,} test pictures, "
            f"calibration error {evaluate.calibration_error(logits, split.labels):.2%}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="NAME@VERSION")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--data", help="a source, as `python -m training evaluate` takes it")
    parser.add_argument(
        "--engine", action="append", choices=get_args(Kind), help="OpenVINO's without int8 unless given"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        every = [
            _open(asked.models, version, kind, Path(tempfile.mkdtemp(dir=cache)))
            for version, kind in product(asked.versions, asked.engine or ("openvino-f32", "openvino-bf16"))
        ]
        costs = [_costs(every, size) for size in _SIZES]
        sys.stdout.write(f"{machine.describe()}; batches of {', '.join(map(str, _SIZES))}\n")
        for opened in every:
            sys.stdout.write(f"{opened.name}: {', '.join(f'{1000 * cost[opened.name]:.2f}' for cost in costs)} ms\n")
            if asked.data:
                sys.stdout.write(f"{opened.name}: {opened.judged(asked.data)}\n")


def _open(models: Path, version: str, kind: Kind, cache: Path) -> _Opened:
    folder = artifact.folder(models, *artifact.resolve(models, version))
    manifest = artifact.verify(folder)
    place = Place(device="cpu", threads=1, cache=cache)
    candidates.prepare(kind, folder, manifest, place)
    engine = candidates.make(kind, folder, manifest, place)
    engine.load()
    return _Opened(f"{version} {kind}", manifest, engine, probe.read(folder / probe.PROBE).pictures)


def _costs(every: Sequence[_Opened], size: int) -> dict[str, float]:
    """Seconds of processor time that a batch takes with each engine."""
    least = {opened.name: math.inf for opened in every}
    for _ in range(3 + _PICTURES // size):  # in the first ones code is generated
        for opened in every:
            started = time.process_time()
            opened.batch(size)
            least[opened.name] = min(least[opened.name], time.process_time() - started)
    return least


if __name__ == "__main__":
    main()
