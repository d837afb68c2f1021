"""Looks a data source over before training: the class and split of each picture, and all that is wrong."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from training.picture import EXTENSIONS

SPLITS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
MIN_PER_CLASS = 2  # one to train on and one to validate on
SMALL_CLASS = 20
_NAMED = 10  # so many files are named one by one in a message; the others are counted


@dataclass(frozen=True)
class Place:
    """Where a picture belongs: `split` is train, test or validation."""

    split: str
    label: str


@dataclass
class Findings:
    """What `inspect` found.

    Attributes:
        places: for each usable picture, its place.
        classes: names of the classes, in natural order; the index is the label.
        errors: what has to be mended before training, a sentence each.
        warnings: what a user should know, a sentence each.
    """

    places: dict[PurePosixPath, Place] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def is_picture_name(path: PurePosixPath) -> bool:
    """Whether the file's ending is one of a picture format that is read."""
    return path.suffix.lower() in EXTENSIONS


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts `img2` before `img10`."""
    return [(int(part), "") if part.isdigit() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)]


def inspect(
    pictures: Sequence[PurePosixPath],
    folders: Sequence[PurePosixPath] = (),
    damaged: Mapping[PurePosixPath, str] | None = None,
    others: Sequence[PurePosixPath] = (),
) -> Findings:
    """Sort a source's files into splits and classes and list every problem at once.

    Args:
        pictures: paths of the files that decode, below the source's root.
        folders: paths of its folders, empty ones too.
        damaged: paths of the pictures that cannot be decoded, with the reason.
        others: paths of files that are no pictures.
    """
    damaged = damaged or {}
    findings = Findings()
    for path, reason in list(damaged.items())[:_NAMED]:
        findings.errors.append(f"{path}: {reason}")
    if len(damaged) > _NAMED:
        findings.errors.append(f"... and {len(damaged) - _NAMED} more pictures that cannot be read.")
    if others:
        findings.warnings.append(f"{len(others)} files are no pictures and are left out: {_some(others)}")
    every = [*pictures, *damaged]
    if not every:
        findings.errors.append(
            "There are no pictures. Put JPEG, PNG, WebP, GIF or BMP files into one folder for each class, "
            "like cat/1.jpg."
        )
        return findings
    depth = _wrapping(every, folders)
    _place(findings, pictures, depth)
    _check_classes(findings, [PurePosixPath(*f.parts[depth:]) for f in folders if len(f.parts) > depth])
    return findings


def _wrapping(pictures: Sequence[PurePosixPath], folders: Sequence[PurePosixPath]) -> int:
    """Number of leading folders that everything lies in, leaving the class folders in place."""
    depth = 0
    every = [*pictures, *folders]
    while (
        len({path.parts[depth] for path in every if len(path.parts) > depth}) == 1
        and min(len(path.parts) for path in pictures) > depth + 2
    ):
        depth += 1
    return depth


def _place(findings: Findings, pictures: Sequence[PurePosixPath], depth: int) -> None:
    tops = {path.parts[depth].casefold() for path in pictures if len(path.parts) > depth + 1}
    with_splits = any(SPLITS.get(top) == "train" for top in tops) and all(top in SPLITS for top in tops)
    stray = []
    for path in pictures:
        parts = path.parts[depth:]
        if len(parts) < (3 if with_splits else 2):
            stray.append(path)
        elif with_splits:
            findings.places[path] = Place(SPLITS[parts[0].casefold()], parts[1])
        else:
            findings.places[path] = Place("train", parts[0])
    if stray:
        findings.warnings.append(f"{len(stray)} pictures lie in no class folder and are left out: {_some(stray)}")


def _check_classes(findings: Findings, folders: Iterable[PurePosixPath]) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for place in findings.places.values():
        counts[place.split][place.label] += 1
    train = counts["train"]
    findings.classes = tuple(sorted(train, key=natural))
    labelled = set(train) | set(counts["test"]) | set(counts["validation"])
    findings.errors += [
        f"Class {name!r} is empty. Put pictures into it, or remove it."
        for name in sorted(_class_folders(folders, len(counts) > 1) - labelled, key=natural)
    ]
    if len(train) < 2:
        found = f"only one class, {findings.classes[0]!r}" if train else "no class at all"
        findings.errors.append(f"There is {found}. A classifier needs pictures of two classes or more.")
    for name in findings.classes:
        if train[name] < MIN_PER_CLASS:
            findings.errors.append(f"Class {name!r} has {train[name]} picture; it needs {MIN_PER_CLASS} or more.")
        elif train[name] < SMALL_CLASS:
            findings.warnings.append(
                f"Class {name!r} has only {train[name]} pictures; {SMALL_CLASS} or more work better."
            )
    _check_names(findings, counts)


def _class_folders(folders: Iterable[PurePosixPath], with_splits: bool) -> set[str]:
    level = 2 if with_splits else 1
    return {folder.parts[level - 1] for folder in folders if len(folder.parts) == level}


def _check_names(findings: Findings, counts: Mapping[str, Counter[str]]) -> None:
    folded: dict[str, list[str]] = defaultdict(list)
    for name in findings.classes:
        folded[name.casefold().strip()].append(name)
    for names in folded.values():
        if len(names) > 1:
            findings.errors.append(f"The class names {names} differ only in case or spaces. Merge them or rename one.")
    for split in ("test", "validation"):
        for name in sorted(set(counts[split]) - set(findings.classes), key=natural):
            findings.errors.append(f"Class {name!r} is in the {split} split but not in train.")
        missing = [name for name in findings.classes if name not in counts[split]]
        if counts[split] and missing:
            findings.warnings.append(f"The {split} split has no pictures of {missing}.")


def _some(paths: Sequence[PurePosixPath]) -> str:
    named = ", ".join(str(path) for path in paths[:_NAMED])
    return named if len(paths) <= _NAMED else f"{named} and {len(paths) - _NAMED} more"
