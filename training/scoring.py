"""Scoring a version that is written, through its exported file, on a source of pictures."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import artifact, corruption, data, evaluate, export, packaging
from training.artifact import Manifest
from training.data import Partition
from training.device import CPU
from training.errors import InputError
from training.lineage import lineage, partition
from training.normalisation import Normalisation
from training.novelty import Neighbours, auroc, features
from training.split import repeating

log = logging.getLogger(__name__)


def score(
    models: Path, model: str, source: str, split: str, *, corruptions: bool = False, unknown: str | None = None
) -> dict[str, Any]:
    """Evaluate an artifact's exported file on a split of a source.

    A source that the model was trained on is split as it was then. Any other source without splits is scored whole, but
    for the pictures that repeat ones which the model, or one that it was made from, was trained on or chosen by, as far
    as their data is cached.

    Args:
        model: `name`, meaning the version in production, or `name@version`.
        split: train, validation or test.
        corruptions: whether to score corrupted pictures too, see `training.corruption`.
        unknown: a source of pictures that are of none of the classes, to tell from those of the split.

    Returns:
        The metrics, with `model`, `version`, `data_sha256`, `split` as asked for, `scored` for what that came to in
        words, and `left_out` pictures; `corruptions` and `novelty` where asked for.

    Raises:
        InputError: no such model or split, classes that the model does not know, or no picture that is new to it.
        ArtifactError: the artifact does not verify.
    """
    name, version = artifact.resolve(models, model)
    folder = artifact.folder(models, name, version)
    manifest = artifact.verify(folder)
    dataset = _load(manifest, source)
    known = list(lineage(models, manifest))
    whole, scored = _choose_split(dataset, manifest, split, known)
    chosen = whole if split == "train" else _new(whole, dataset.sha256, manifest, known)
    script = export.load_script(folder / artifact.SCRIPT, CPU)
    out = evaluate.answers(script, chosen.images)
    found: dict[str, Any] = {"model": name, "version": version, "split": split, "data_sha256": dataset.sha256}
    found |= {"scored": scored, "left_out": len(whole) - len(chosen)}
    found |= evaluate.metrics(out, chosen.labels, manifest.classes)
    if corruptions:
        found["corruptions"] = corruption.accuracies(script, chosen.images, chosen.labels)
    if unknown is not None:
        found["novelty"] = _novelty(folder, manifest, script, chosen.images, unknown)
    return found


def pictures(manifest: Manifest, source: str, split: str) -> tuple[data.Split, str]:
    """A split of a source, labelled by the places of the model's classes, and the hash of the source.

    Raises:
        InputError: no such split, or classes that the model does not know.
    """
    dataset = _load(manifest, source)
    return _choose_split(dataset, manifest, split, ())[0], dataset.sha256


def _load(manifest: Manifest, source: str) -> data.Dataset:
    """A source, its labels the places of the model's classes."""
    dataset = data.load(source, manifest.input_size, least_classes=1)
    strange = [label for label in dataset.classes if label not in manifest.classes]
    if strange:
        raise InputError(f"{manifest.name} does not know the classes {strange}; it knows {list(manifest.classes)}.")
    return dataset.labelled(manifest.classes)


def _novelty(folder: Path, manifest: Manifest, script: export.Script, known: Tensor, source: str) -> dict[str, Any]:
    """How well two scores tell pictures of other things from the known ones: AUROC, 0.5 for a guess, 1 for always."""
    strangers = data.load(source, manifest.input_size, least_classes=1)
    unknown = torch.cat([split.images for split in strangers.splits.values()])

    def confidence(images: Tensor) -> Tensor:
        out = evaluate.answers(script, images)
        return out.softmax(1).amax(1)

    found = {"data_sha256": strangers.sha256, "known": len(known), "unknown": len(unknown)}
    # The baseline of Hendrycks & Gimpel 2016, arXiv:1610.02136.
    scores = {"max_probability": auroc(confidence(known), confidence(unknown))}
    if artifact.NEIGHBOURS in manifest.files:
        neighbours = Neighbours.read(folder / artifact.NEIGHBOURS)
        network, normalise = packaging.restore(folder, manifest), Normalisation(manifest.mean, manifest.std)
        near, far = (neighbours(features(network, normalise, images)) for images in (known, unknown))
        scores["nearest_features"] = auroc(near, far)
    else:
        log.warning("this version carries no %s, so only its probabilities are judged", artifact.NEIGHBOURS)
    return found | {"auroc": scores}


def _choose_split(
    dataset: data.Dataset, manifest: Manifest, split: str, known: Sequence[tuple[Manifest, Partition]]
) -> tuple[data.Split, str]:
    """The pictures to score, and what they are in words."""
    trained = (*(version for version, _ in known), manifest)
    same = next((version for version in trained if version.data.sha256 == dataset.sha256), None)
    if same:
        parts = partition(same, dataset)
        return {"train": parts.train, "validation": parts.validation, "test": parts.test}[split], f"{split} split"
    if list(dataset.splits) == ["train"]:
        log.warning("this source has no splits: all of it is scored")
        return dataset.splits["train"], "all pictures"
    if split in dataset.splits:
        return dataset.splits[split], f"{split} split"
    raise InputError(f"The source has no {split} split, only {', '.join(dataset.splits)}. Choose one with --split.")


def _new(
    chosen: data.Split, digest: str, manifest: Manifest, known: Sequence[tuple[Manifest, Partition]]
) -> data.Split:
    """The pictures of a source (SHA-256 `digest`) that repeat none that the model was trained on or chosen by."""
    if manifest.data.sha256 not in {digest, *(version.data.sha256 for version, _ in known)}:
        log.warning("the data that the model was trained on is not cached: pictures of it are not noticed")
    old = torch.zeros(len(chosen), dtype=torch.bool)
    for version, parts in known:
        if version.data.sha256 != digest:
            old |= repeating(chosen.images, torch.cat([parts.train.images, parts.validation.images]))
    if old.all():
        raise InputError("The model was trained on all of these pictures or chosen by them. Give others.")
    if old.any():
        log.warning("%d of %d pictures are left out: they repeat ones that the model knows", int(old.sum()), len(old))
    return chosen.subset(~old)
