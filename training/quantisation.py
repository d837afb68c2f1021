"""Quantisation after training: a version in 8-bit integers, made of one in floating point without training it on."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from training import artifact, data, evaluate, export, packaging, quantiser, replay
from training.artifact import Manifest
from training.base import Base
from training.data import Partition, Split
from training.device import CPU
from training.errors import InputError
from training.lineage import partition

_PICTURES = 256  # of the training split, whose activations give the ranges
_KEPT = (replay.REPLAY, "report/curves.png")  # what the training left behind holds for the new version as well


@dataclass(frozen=True)
class Quantisation:
    """What to quantise.

    Attributes:
        model: `name`, meaning the version in production, or `name@version`.
        source: the data that it was trained on, as on the command line.
    """

    model: str
    source: str
    models: Path
    command: Sequence[str] = ()


def quantise(task: Quantisation) -> Manifest:
    """Quantise a version to 8-bit integers, measure what that costs, and write it as the next version.

    Ranges come from training pictures, calibration and cost from the validation split; nothing is chosen by the test
    split. See `training.quantiser` for the scheme.

    Raises:
        InputError: there is no such version, or the data are not those that it was trained on.
        ArtifactError: the exported file disagrees with the network, or the disk is full; nothing was written.
    """
    base = Base.read(task.models, task.model)
    parent, recipe = base.manifest, base.recipe()
    parts = _parts(base, task.source)
    network = quantiser.quantised(base.network())
    chosen = torch.linspace(0, len(parts.train) - 1, min(_PICTURES, len(parts.train))).round().long()
    quantiser.fit(network, base.normalise, parts.train.images[chosen])
    before = _accuracy(base.folder, parts.validation)
    with artifact.new_version(task.models, parent.name) as folder:
        calibration, metrics = packaging.write_network(
            folder, network, base.normalise, parts, parent.classes, recipe, CPU
        )
        for name in _KEPT:
            if name in parent.files:
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(base.folder / name, folder / name)
        made: dict[str, Any] = {
            "version": artifact.next_version(task.models, parent.name),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(task.command),
            "temperature": calibration.undecided,
            "temperature_certain": calibration.certain,
            "metrics": metrics,
            "libraries": packaging.libraries(),
            "parent": str(base),
            "finetune": None,
            "quantisation": {
                "weights": "int8",
                "activations": "uint8",
                "pictures": len(chosen),
                "count": len(parts.validation),
                "accuracy": {"before": before, "after": metrics["validation"]["accuracy"]},
                "bytes": {"before": _size(base.folder), "after": _size(folder)},
            },
        }
        return packaging.write_report(folder, parent.model_copy(update=made))


def _parts(base: Base, source: str) -> Partition:
    """The splits of the data as they were when the base was trained."""
    manifest = base.manifest
    dataset = data.load(source, manifest.input_size)
    if dataset.sha256 != manifest.data.sha256 or dataset.classes != manifest.classes:
        raise InputError(
            f"{source!r} is not all that {base} was trained on, so what it would cost cannot be told: give the source "
            f"with the SHA-256 {manifest.data.sha256} and the classes {list(manifest.classes)}."
        )
    return partition(manifest, dataset)


def _accuracy(folder: Path, split: Split) -> float:
    """Share of right answers of the file that is served."""
    script = export.load_script(folder / artifact.SCRIPT, CPU)
    return evaluate.accuracy(evaluate.answers(script, split.images), split.labels)


def _size(folder: Path) -> int:
    return (folder / artifact.WEIGHTS).stat().st_size
