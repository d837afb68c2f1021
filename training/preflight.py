"""Looks a data source over before training: the class and split of each picture, and all that is wrong."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
SMALL_CLASS = 20
_HELD_OUT = ("test", "validation")
_NAMED = 10  # so many files are named one by one in a message; the others are counted
# Endings of pictures in formats that are not read: whoever puts such a file into a folder means it to be a picture.
_UNREAD = frozenset(
    {".heic", ".heif", ".avif", ".tif", ".tiff", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"}
)


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


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts `img2` before `img10`, and names that read the same in a fixed order."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    digits = (part.lstrip("0") for part in parts[1::2])
    key = [(0, part.casefold()) for part in parts]
    key[1::2] = [(len(number), number) for number in digits]
    return key, name


def inspect(
    pictures: Sequence[PurePosixPath],
    folders: Sequence[PurePosixPath] = (),
    damaged: Mapping[PurePosixPath, str] | None = None,
    others: Sequence[PurePosixPath] = (),
    least_classes: int = 2,
) -> Findings:
    """Sort a source's files into splits and classes and list every problem at once.

    Args:
        pictures: paths of the files that decode, below the source's root.
        folders: paths of its folders, empty ones too.
        damaged: paths of the pictures that cannot be decoded, with the reason.
        others: paths of files that are no pictures.
        least_classes: how many classes the training split needs; one is enough to add it to a model.
    """
    damaged = damaged or {}
    findings = Findings()
    _report_files(findings, damaged, others)
    every = [*pictures, *damaged]
    if not every:
        findings.errors.append(_no_pictures(others))
        return findings
    layout = _Layout.of(every, [*folders, *(path.parent for path in others if _ending(path) in _UNREAD)])
    # A damaged picture counts where it lies: its class is neither empty nor missing once the picture is mended.
    places = {path: place for path in every if (place := layout.place(path))}
    findings.places = {path: place for path, place in places.items() if path not in damaged}
    stray = [path for path in every if path not in places]
    if stray:
        findings.warnings.append(f"{len(stray)} pictures lie in no class folder and are left out: {some(stray)}")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for place in places.values():
        counts[place.split][place.label] += 1
    beside: dict[Place, list[PurePosixPath]] = defaultdict(list)
    for path in others:
        if lies := layout.place(path):
            beside[lies].append(path)
    findings.classes = tuple(sorted(counts["train"], key=natural))
    _check_empty(findings, {layout.class_name(folder) for folder in folders}, counts, beside)
    _check_enough(findings, counts, least_classes, stray)
    _check_counts(findings, counts, beside)
    _check_names(findings, counts)
    return findings


def _report_files(findings: Findings, damaged: Mapping[PurePosixPath, str], others: Sequence[PurePosixPath]) -> None:
    for path, reason in list(damaged.items())[:_NAMED]:
        findings.errors.append(f"{path}: {reason}")
    if len(damaged) > _NAMED:
        findings.errors.append(f"... and {len(damaged) - _NAMED} more pictures that cannot be read.")
    if others:
        findings.warnings.append(f"{len(others)} files are no pictures and are left out: {some(others)}")


def _no_pictures(others: Sequence[PurePosixPath]) -> str:
    found = f"There are no pictures, only {_described(others)}." if others else "There are no pictures."
    wanted = "Put JPEG, PNG, WebP, GIF or BMP files into one folder for each class, like cat/1.jpg."
    return " ".join(filter(None, (found, _export_advice(others), wanted)))


def _ending(path: PurePosixPath) -> str:
    return path.suffix.lower()


def _described(paths: Sequence[PurePosixPath]) -> str:
    """How many files that are no pictures there are, of what endings, and one of them."""
    endings = sorted({_ending(path) or "no ending" for path in paths})
    return f"{_counted(len(paths), 'file')} ({some(endings)}) such as {paths[0]}"


def _export_advice(paths: Sequence[PurePosixPath]) -> str:
    """What to do about pictures in formats that are not read; empty if there are none."""
    formats = sorted({_ending(path).removeprefix(".").upper() for path in paths if _ending(path) in _UNREAD})
    return f"{' and '.join(formats)} cannot be read: export such pictures as JPEG or PNG." if formats else ""


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class _Layout:
    """How a source's folders are read: the folders `wrapping` lie around all; below are splits, or classes at once."""

    wrapping: tuple[str, ...]
    with_splits: bool

    @classmethod
    def of(cls, pictures: Sequence[PurePosixPath], folders: Sequence[PurePosixPath]) -> "_Layout":
        wrapping = _wrapping(pictures, folders)
        depth = len(wrapping)
        tops = {path.parts[depth].casefold() for path in pictures if len(path.parts) > depth + 1}
        known = {SPLITS[top] for top in tops if top in SPLITS}
        in_classes = {SPLITS.get(path.parts[depth].casefold()) for path in pictures if len(path.parts) > depth + 2}
        if tops <= SPLITS.keys():
            return cls(wrapping, "train" in known or len(known) > 1)
        # Folders beside the splits hold something else; without a second split, `train` is a class like `plane`.
        return cls(wrapping, "train" in known & in_classes and len(known) > 1)

    def place(self, path: PurePosixPath) -> Place | None:
        """The place of a file; None if it lies in no class folder."""
        depth = len(self.wrapping)
        parts = path.parts[depth:-1]
        if path.parts[:depth] != self.wrapping:
            return None
        if not self.with_splits:
            return Place("train", _label(parts[0])) if parts else None
        split = SPLITS.get(parts[0].casefold()) if len(parts) > 1 else None
        return Place(split, _label(parts[1])) if split else None

    def class_name(self, folder: PurePosixPath) -> str | None:
        """The class that a folder stands for; None if it is a split, a wrapping, or lies inside a class."""
        parts = folder.parts[len(self.wrapping) :]
        if len(parts) != (2 if self.with_splits else 1):
            return None
        if self.with_splits and parts[0].casefold() not in SPLITS:
            return None
        return _label(parts[-1])


def _wrapping(pictures: Sequence[PurePosixPath], folders: Sequence[PurePosixPath]) -> tuple[str, ...]:
    """The leading folders that everything lies in, leaving the class folders in place."""
    depth = 0
    while len({path.parts[depth] for path in [*pictures, *folders] if len(path.parts) > depth}) == 1:
        inner = {path.parts[depth + 1] for path in pictures if len(path.parts) > depth + 2}
        stray = any(len(path.parts) == depth + 2 for path in pictures)
        # A lone picture beside several class folders does not make the folder around them a class.
        if not inner or (stray and len(inner) == 1):
            break
        depth += 1
    return max(pictures, key=lambda path: len(path.parts)).parts[:depth]


def _label(folder: str) -> str:
    """A class's name, the same whether the folder was made on a system that stores accents composed or apart."""
    return unicodedata.normalize("NFC", folder)


def _check_empty(
    findings: Findings,
    folders: set[str | None],
    counts: Mapping[str, Counter[str]],
    beside: Mapping[Place, Sequence[PurePosixPath]],
) -> None:
    """Name the classes without pictures: `folders` are the classes of all folders, `beside` are files of no picture."""
    filled = {name for split in counts.values() for name in split}
    hollow = set()
    for place, paths in sorted(beside.items(), key=lambda item: natural(item[0].label)):
        # Notes do no harm in one split's folder of a class that another split fills.
        if counts[place.split][place.label] or (place.label in filled and not _export_advice(paths)):
            continue
        hollow.add(place.label)
        advice = _export_advice(paths) or "Put JPEG or PNG pictures into it."
        findings.errors.append(
            f"The folder of class {place.label!r} holds no pictures, only {_described(paths)}. {advice} If it is no "
            "class, remove it."
        )
    for name in sorted(folders - filled - hollow - {None}, key=lambda name: natural(name or "")):
        findings.errors.append(f"Class {name!r} is empty. Put pictures into it, or remove it.")


def _check_enough(
    findings: Findings, counts: Mapping[str, Counter[str]], least_classes: int, stray: Sequence[PurePosixPath]
) -> None:
    if len(counts["train"]) >= least_classes:
        return
    found = f"only one class, {findings.classes[0]!r}" if findings.classes else "no class at all to train on"
    need = "A classifier needs pictures of two classes or more"
    if stray:
        found += f", and {_counted(len(stray), 'picture')} in no class folder such as {stray[0]}"
        need += ": put those of each class into a folder of its own, like cat/1.jpg"
    findings.errors.append(f"There is {found}. {need}.")


def _check_counts(
    findings: Findings, counts: Mapping[str, Counter[str]], beside: Mapping[Place, Sequence[PurePosixPath]]
) -> None:
    train = counts["train"]
    # One picture to train on, and one for each split that has to be cut from the training pictures.
    least = 1 + sum(not counts[split] for split in _HELD_OUT)
    for name in findings.classes:
        if train[name] < least:
            problem = f"Class {name!r} has {_counted(train[name], 'picture')}; it needs {least} or more."
            if unread := beside.get(Place("train", name)):
                problem = f"{problem} Left out: {_described(unread)}. {_export_advice(unread)}".rstrip()
            findings.errors.append(problem)
        elif train[name] < SMALL_CLASS:
            findings.warnings.append(
                f"Class {name!r} has only {train[name]} pictures; {SMALL_CLASS} or more work better."
            )


def _check_names(findings: Findings, counts: Mapping[str, Counter[str]]) -> None:
    folded: dict[str, list[str]] = defaultdict(list)
    for name in findings.classes:
        folded[name.casefold().strip()].append(name)
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
            findings.errors.append(f"Class {name!r} has control characters or broken letters in its name. Rename it.")
    for names in folded.values():
        if len(names) > 1:
            findings.errors.append(f"The class names {names} differ only in case or spaces. Merge them or rename one.")
    for split in _HELD_OUT:
        for name in sorted(set(counts[split]) - set(findings.classes), key=natural):
            findings.errors.append(f"Class {name!r} is in the {split} split but not in train.")
        missing = [name for name in findings.classes if name not in counts[split]]
        if counts[split] and missing:
            findings.warnings.append(f"The {split} split has no pictures of {missing}.")


def some(paths: Sequence[PurePosixPath] | Sequence[str]) -> str:
    """Name the first few of many files, and count the others."""
    named = ", ".join(str(path) for path in paths[:_NAMED])
    return named if len(paths) <= _NAMED else f"{named} and {len(paths) - _NAMED} more"
