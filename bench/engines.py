"""Prints what a batch costs by version and engine: milliseconds of processor time, one thread, the least of many.

    python -m bench.engines cifar10@1 cifar10@2 --engine openvino-bf16 --engine openvino-f32

The engines take turns, so that whatever else the machine does weighs on all alike.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from app.serving import candidates
from app.serving.candidates import Place
from app.serving.engine import Kind
from training import artifact, machine, probe

_SIZES = (1, 8, 32)
_PICTURES = 1000  # that each engine computes with each size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="NAME@VERSION")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument(
        "--engine", action="append", choices=get_args(Kind), help="OpenVINO's without int8 unless given"
    )
    asked = parser.parse_args()
    batches: dict[str, Callable[[int], object]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for version, kind in product(asked.versions, asked.engine or ("openvino-f32", "openvino-bf16")):
            folder = artifact.folder(asked.models, *artifact.resolve(asked.models, version))
            batches[f"{version} {kind}"] = _opened(folder, kind, Path(tempfile.mkdtemp(dir=cache)))
        costs = [_costs(batches, size) for size in _SIZES]
    sys.stdout.write(f"{machine.describe()}; batches of {', '.join(map(str, _SIZES))}\n")
    for name in batches:
        sys.stdout.write(f"{name}: {', '.join(f'{1000 * cost[name]:.2f}' for cost in costs)} ms\n")


def _opened(folder: Path, kind: Kind, cache: Path) -> Callable[[int], object]:
    """What computes a batch of so many pictures."""
    manifest = artifact.verify(folder)
    place = Place(device="cpu", threads=1, cache=cache)
    candidates.prepare(kind, folder, manifest, place)
    engine = candidates.make(kind, folder, manifest, place)
    engine.load()
    brought = probe.read(folder / probe.PROBE).pictures
    return lambda size: engine.predict(np.resize(brought, (size, *brought.shape[1:])))


def _costs(batches: Mapping[str, Callable[[int], object]], size: int) -> dict[str, float]:
    """Seconds of processor time that a batch takes with each engine."""
    least = dict.fromkeys(batches, math.inf)
    for _ in range(3 + _PICTURES // size):  # in the first ones code is generated
        for name, batch in batches.items():
            started = time.process_time()
            batch(size)
            least[name] = min(least[name], time.process_time() - started)
    return least


if __name__ == "__main__":
    main()
