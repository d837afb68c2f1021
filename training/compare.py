"""The gate before a promotion: candidate and production on the same held-out pictures, which neither was trained on."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training import artifact, data, evaluate, export, replay, split
from training.artifact import Manifest
from training.device import CPU
from training.errors import InputError
from training.lineage import lineage, partition

log = logging.getLogger(__name__)

# What a candidate may cost and still pass. A slower or larger one is refused only if it is slow or large as such: a
# fine-tune on larger pictures is slower, and meant to be.
MOST_FORGOTTEN = 0.02  # accuracy lost on production's classes
MOST_MISCALIBRATED = 0.05  # calibration error gained
SLOW_MS = 100.0
LARGE_BYTES = 100_000_000
_TIMES_WORSE = 2
_TIMED_RUNS = 15
_OF_PICTURES = ("accuracy", "macro_f1", "calibration_error", "old_class_accuracy", "latency_ms")

Script = Callable[[Tensor], Tensor]
Figures = dict[str, float | None]


def compare(
    models: Path, name: str, candidate: int, production: int, archives: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Score two versions of a model and decide whether the candidate may take production's place.

    The pictures are the candidate's test split and production's, without those that nearly repeat a picture that the
    other version, or one that it was made from, was trained on, as far as its data is at hand.

    Args:
        archives: where the data of both versions lies, by its SHA-256; None where it is not kept. Without production's
            data, the pictures that are stored with it take their place, if there are any.

    Returns:
        Ready for JSON: both versions, number and origin of the pictures, the scores of each version, whether the
        candidate has `passed`, and the `reasons` if it has not. A score that no picture tells is None.

    Raises:
        ArtifactError: a version does not verify.
        InputError: the candidate's data cannot be read.
    """
    folders = {number: artifact.folder(models, name, number) for number in (candidate, production)}
    manifests = {number: artifact.verify(folder) for number, folder in folders.items()}
    new, old = manifests[candidate], manifests[production]
    held_out = _held_out(models, new, old, archives)
    scores: dict[int, Figures]
    if any(pictures.labels for pictures in held_out.values()):
        scores = _scores(folders, manifests, held_out, old.classes)
        reasons = _reasons(scores[candidate], scores[production])
    else:
        scores = {number: dict.fromkeys(_OF_PICTURES) | {"bytes": _size(folders[number])} for number in folders}
        reasons = ["No held-out picture is left that neither version was trained on."]
    return {
        "candidate": candidate,
        "production": production,
        "pictures": {origin: len(pictures.labels) for origin, pictures in held_out.items()},
        "scores": {"candidate": scores[candidate], "production": scores[production]},
        "passed": not reasons,
        "reasons": reasons,
    }


@dataclass(frozen=True)
class _Pictures:
    """Pictures with the names of their classes; `images` is uint8 [N, 3, H, W], `at` gives them in any other size."""

    labels: tuple[str, ...]
    images: Tensor
    at: Callable[[int], Tensor]

    def without(self, others: Tensor) -> "_Pictures":
        """Those that repeat none of `others`, uint8 [M, 3, H, W]."""
        keep = ~split.repeating(self.images, others)
        labels = tuple(label for label, kept in zip(self.labels, keep.tolist(), strict=True) if kept)
        return _Pictures(labels, self.images[keep], lambda size: self.at(size)[keep])


@dataclass(frozen=True)
class _Known:
    """A version's test pictures, and the pictures uint8 [M, 3, H, W] that it was trained on or chosen by."""

    test: _Pictures
    seen: Tensor


def _held_out(models: Path, new: Manifest, old: Manifest, archives: Mapping[str, Path | None]) -> dict[str, _Pictures]:
    """The pictures to compare on, by the version whose test split they are of."""
    archive = archives[new.data.sha256]
    assert archive, "a candidate's data is there: it was trained on it just now"  # noqa: S101
    fresh = _read(new, archive)
    if _test_split(new) == _test_split(old):
        return {"candidate": fresh.test}
    before = _read_old(old, archives.get(old.data.sha256)) or _recall(models, old)
    if before is None:
        return {"candidate": fresh.test}
    return {
        "candidate": fresh.test.without(_inherited(models, old, before.seen)),
        "production": before.test.without(_inherited(models, new, fresh.seen, fresh.test.images)),
    }


def _inherited(models: Path, manifest: Manifest, *own: Tensor) -> Tensor:
    """A version's own pictures, and what those that it was made from were trained on or chosen by, in one size."""
    parts = (parts for version, parts in lineage(models, manifest) if version != manifest)
    of_parents = (images for part in parts for images in (part.train.images, part.validation.images))
    return torch.cat([_small(images) for images in (*own, *of_parents)])


def _test_split(manifest: Manifest) -> tuple[object, ...]:
    """All that decides which pictures a version's test split holds: repeats are looked for in its size."""
    data = manifest.data
    return data.sha256, data.seed, data.places, manifest.input_size


def _read(manifest: Manifest, archive: Path) -> _Known:
    dataset = data.load(str(archive), manifest.input_size, least_classes=1, warn=False)
    parts = partition(manifest, dataset)
    labels = tuple(dataset.classes[label] for label in parts.test.labels.tolist())

    def at(size: int) -> Tensor:
        splits = data.load(str(archive), size, least_classes=1, warn=False).splits.values()
        by_name = {name: image for part in splits for name, image in zip(part.names, part.images, strict=True)}
        return torch.stack([by_name[name] for name in parts.test.names])

    seen = torch.cat([parts.train.images, parts.validation.images])
    return _Known(_Pictures(labels, parts.test.images, at), seen)


def _read_old(manifest: Manifest, archive: Path | None) -> _Known | None:
    """What an earlier version knows, if its data is kept and can still be read: rules and limits may have changed."""
    try:
        return _read(manifest, archive) if archive else None
    except InputError as error:
        log.warning("the data of version %d in production cannot be read any more: %s", manifest.version, error)
        return None


def _recall(models: Path, manifest: Manifest) -> _Known | None:
    memory = replay.recall(artifact.folder(models, manifest.name, manifest.version), manifest)
    if memory is None:
        return None
    images = memory.test.images
    labels = tuple(manifest.classes[label] for label in memory.test.labels.tolist())
    return _Known(_Pictures(labels, images, lambda size: _resized(images, size)), memory.pool.images)


def _resized(images: Tensor, size: int) -> Tensor:
    """Uint8 [N, 3, size, size], by the resampling that pictures are decoded with."""
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte()


def _small(images: Tensor) -> Tensor:
    """Pictures in the one size in which repeats are looked for, so that splits of different sizes can be joined."""
    return _resized(images, 32)


def _scores(
    folders: Mapping[int, Path],
    manifests: Mapping[int, Manifest],
    held_out: Mapping[str, _Pictures],
    old_classes: tuple[str, ...],
) -> dict[int, Figures]:
    """The figures of each version, measured on the CPU; there has to be a picture."""
    scripts = {number: export.load_script(folder / artifact.SCRIPT, CPU) for number, folder in folders.items()}
    scores = {number: _score(scripts[number], manifests[number], held_out, old_classes) for number in folders}
    one = next(pictures.images[:1] for pictures in held_out.values() if pictures.labels)
    times = _latencies([(scripts[number], _resized(one, manifests[number].input_size)) for number in folders])
    return {
        number: scores[number] | {"latency_ms": shortest, "bytes": _size(folders[number])}
        for number, shortest in zip(folders, times, strict=True)
    }


def _score(
    script: Script, manifest: Manifest, held_out: Mapping[str, _Pictures], old_classes: tuple[str, ...]
) -> Figures:
    """How well a version answers; a picture of a class that it does not know counts as a wrong answer."""
    images = torch.cat([pictures.at(manifest.input_size) for pictures in held_out.values()])
    truth = [label for pictures in held_out.values() for label in pictures.labels]
    names = sorted({*manifest.classes, *truth})
    labels = torch.tensor([names.index(label) for label in truth])
    known = evaluate.answers(script, images)
    # Classes that the version does not know are never its answer.
    out = torch.full((len(images), len(names)), -torch.inf)
    out[:, [names.index(name) for name in manifest.classes]] = known
    classes = evaluate.per_class(evaluate.confusion(out, labels), names)
    asked = [classes[name]["f1"] for name in set(truth)]
    old = torch.tensor([label in old_classes for label in truth])
    return {
        "accuracy": evaluate.accuracy(out, labels),
        "macro_f1": statistics.fmean(asked),
        "calibration_error": evaluate.calibration_error(out, labels),
        "old_class_accuracy": evaluate.accuracy(out[old], labels[old]) if old.any() else None,
    }


def _size(folder: Path) -> float:
    """Bytes of a version's exported file."""
    return float((folder / artifact.SCRIPT).stat().st_size)


@torch.inference_mode()
def _latencies(timed: Sequence[tuple[Script, Tensor]]) -> list[float]:
    """The shortest time of each script for its picture, in milliseconds.

    This process gives way to all others, so a run may take many times as long as its work. The scripts take turns, and
    the shortest time is the one with the least of that in it.
    """
    times: list[list[float]] = [[] for _ in timed]
    for _ in range(_TIMED_RUNS):
        for (script, image), taken in zip(timed, times, strict=True):
            started = time.perf_counter()
            script(image)
            taken.append(time.perf_counter() - started)
    return [round(1000 * min(taken), 2) for taken in times]


def _reasons(new: Mapping[str, float | None], old: Mapping[str, float | None]) -> list[str]:
    """Why the candidate may not take production's place; empty if it may."""

    def of(scores: Mapping[str, float | None], key: str) -> float:
        return scores[key] or 0.0

    found = []
    if of(new, "macro_f1") < of(old, "macro_f1"):
        found.append(f"Its macro F1 is {of(new, 'macro_f1'):.2%}, production's {of(old, 'macro_f1'):.2%}.")
    if of(new, "old_class_accuracy") < of(old, "old_class_accuracy") - MOST_FORGOTTEN:
        found.append(
            f"On production's classes it is right in {of(new, 'old_class_accuracy'):.2%}, production in "
            f"{of(old, 'old_class_accuracy'):.2%}."
        )
    if of(new, "calibration_error") > of(old, "calibration_error") + MOST_MISCALIBRATED:
        found.append(
            f"Its calibration error is {of(new, 'calibration_error'):.2%}, production's "
            f"{of(old, 'calibration_error'):.2%}."
        )
    if of(new, "latency_ms") > max(SLOW_MS, _TIMES_WORSE * of(old, "latency_ms")):
        found.append(f"It takes {of(new, 'latency_ms'):.0f} ms a picture, production {of(old, 'latency_ms'):.0f} ms.")
    if of(new, "bytes") > max(LARGE_BYTES, _TIMES_WORSE * of(old, "bytes")):
        found.append(f"It has {of(new, 'bytes') / 1e6:.0f} MB, production {of(old, 'bytes') / 1e6:.0f} MB.")
    return found
