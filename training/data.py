"""Data sets as uint8 tensors: decoded once, cached by the hash of their source."""

import contextlib
import dataclasses
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training import preflight, source
from training.errors import ImageError, InputError
from training.machine import processors
from training.picture import DEFAULT_MAX_PIXELS, Pixels, decode, open_picture
from training.preflight import some
from training.split import duplicate_clusters, held_out, repeating

log = logging.getLogger(__name__)

_CACHE_VERSION = 5  # part of the cache key: raise it whenever reading, decoding or clustering changes
_DECODED_AT_ONCE = 256
_ABANDONED_SECONDS = 24 * 3600  # a file that nobody has written to for so long is of a writer that was killed
_BYTES_AT_ONCE = 64 << 20  # of encoded pictures, so that large photos do not fill the memory
_SURVEYED = 1000  # pictures whose size is looked at
_FOLDERS = {"test": "test", "validation": "val"}
TEST_SHARE = 0.2  # of a source that comes without a split

_max_pixels = DEFAULT_MAX_PIXELS  # see `allow`


@dataclass(frozen=True)
class Split:
    """Some pictures with their labels.

    Attributes:
        images: uint8 [N, 3, H, W], RGB.
        labels: int64 [N].
        names: N paths inside the source.
        clusters: int64 [N], equal for near-duplicates.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    clusters: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, mask: Tensor) -> "Split":
        """The pictures for which `mask` (bool [N]) is True."""
        names = tuple(name for name, keep in zip(self.names, mask.tolist(), strict=True) if keep)
        return Split(self.images[mask], self.labels[mask], names, self.clusters[mask])

    def relabelled(self, place: Tensor) -> "Split":
        """The same pictures, each label replaced by what `place` (int64 [classes]) holds at it."""
        return dataclasses.replace(self, labels=place[self.labels])

    @classmethod
    def joined(cls, *splits: "Split") -> "Split":
        """One split of several; near-duplicates are known only within each of them."""
        # A part of a split keeps the numbers of the whole, which may be larger than its own length.
        ends = accumulate((int(split.clusters.max()) + 1 if len(split) else 0 for split in splits), initial=0)
        clusters = [split.clusters + offset for split, offset in zip(splits, ends, strict=False)]
        return cls(
            torch.cat([split.images for split in splits]),
            torch.cat([split.labels for split in splits]),
            tuple(name for split in splits for name in split.names),
            torch.cat(clusters),
        )


@dataclass(frozen=True)
class Dataset:
    """A decoded source.

    Attributes:
        classes: their names in label order.
        splits: those that it came with.
        sha256: hash of what it held.
        warnings: what a user should know of it, a sentence each.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    sha256: str
    warnings: tuple[str, ...] = ()

    def labelled(self, classes: tuple[str, ...]) -> "Dataset":
        """The same pictures, the labels places of their names in `classes`, which has them all."""
        place = torch.tensor([classes.index(name) for name in self.classes])
        splits = {name: split.relabelled(place) for name, split in self.splits.items()}
        return dataclasses.replace(self, classes=classes, splits=splits)


@dataclass(frozen=True)
class Partition:
    """What a run trains on, decides by, and is judged by once at the end.

    Attributes:
        made: the splits that were not in the source and were cut from its training pictures.
    """

    train: Split
    validation: Split
    test: Split
    made: tuple[str, ...]


def allow(max_pixels: int) -> None:
    """Set how many pixels, width times height, a picture may have that this process decodes for a data set.

    Until then it is `DEFAULT_MAX_PIXELS`. Data sets that are cached already are not measured again.
    """
    global _max_pixels  # noqa: PLW0603 (every run of a process reads by the same limit)
    _max_pixels = max_pixels


def cache_folder() -> Path:
    """Where decoded data sets are kept: `$REFIT_CACHE`, else `refit` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REFIT_CACHE") or Path(base, "refit"))


@dataclass(frozen=True)
class Survey:
    """What a source tells without being decoded: its classes, number of pictures, and their median shorter side."""

    classes: tuple[str, ...]
    count: int
    side: int


def survey(name: str) -> Survey:
    """Look a SOURCE over without decoding it; what is wrong with it is passed over, `load` names that.

    Raises:
        InputError: the source cannot be read.
    """
    sides: list[int] = []
    pictures: list[PurePosixPath] = []
    folders: list[PurePosixPath] = []
    others: list[PurePosixPath] = []
    for entry in source.read(source.locate(name, cache_folder())):
        if entry.data is None:
            folders.append(entry.path)
        elif not preflight.is_picture_name(entry.path):
            others.append(entry.path)
        else:
            pictures.append(entry.path)
            if len(sides) < _SURVEYED:
                with contextlib.suppress(ImageError):
                    sides.append(min(open_picture(entry.data, _max_pixels).size))
    classes = preflight.inspect(pictures, folders, others=others).classes
    return Survey(classes, len(set(pictures)), int(statistics.median(sides)) if sides else 0)


def load(name: str, size: int, least_classes: int = 2, warn: bool = True) -> Dataset:
    """Read a SOURCE into tensors, from the cache if it was read before.

    Args:
        name: `cifar10`, a folder or an archive.
        size: side of the square that every picture is resized to, in pixels.
        least_classes: how many classes it has to have.
        warn: whether to log what a user should know of it.

    Raises:
        InputError: lists every problem of the source.
    """
    path = source.locate(name, cache_folder())
    digest = source.sha256(path)
    dataset = cached(digest, size)
    if not dataset or len(dataset.classes) < least_classes:
        dataset = _decode_source(path, digest, size, least_classes)
        try:
            _write_cache(_cache_path(digest, size), dataset)
        except OSError as error:
            log.warning("%s is not cached, so the next run decodes it again: %s", name, error)
    if warn:
        _warn(dataset.warnings)
    return dataset


def cached(sha256: str, size: int) -> Dataset | None:
    """A data set that was loaded before, by the hash of its source; None if no readable copy is kept."""
    path = _cache_path(sha256, size)
    try:
        dataset = _read_cache(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the cached copy %s cannot be read and is passed over (%s)", path, error)
        return None
    try:
        os.utime(path)  # see `trim`
    except OSError as error:  # a cache that is only read
        log.info("%s cannot be marked as read: %s", path, error)
    return dataset


def trim(most: int) -> None:
    """Delete cached data sets beyond `most` bytes, those that were not read for longest first, of any release.

    What killed writers left goes, too. A service's jobs call this, and where the service and the command line share the
    cache, they delete what was decoded for the command line as well. It is decoded again when its source is next named.
    Until then it is not at hand to those that look for data by its hash: a fine-tune whose base's data is not named has
    the pictures that are stored with the base, and fewer repeats are known.

    Raises:
        OSError: a file cannot be deleted.
    """
    for written, _, path in _files(".partial-*"):
        if time.time() - written > _ABANDONED_SECONDS:
            path.unlink(missing_ok=True)
    kept = 0
    for _, size, path in sorted(_files("*.safetensors"), reverse=True):
        kept += size
        if kept > most:
            path.unlink(missing_ok=True)


def _files(pattern: str) -> Iterator[tuple[float, int, Path]]:
    """Cached files, each with the time of its last use and its size in bytes."""
    for path in _datasets().glob(pattern):
        try:
            found = path.stat()
        except FileNotFoundError:  # another process trims, or has finished writing
            continue
        yield found.st_mtime, found.st_size, path


def _datasets() -> Path:
    return cache_folder() / "datasets"


def _cache_path(sha256: str, size: int) -> Path:
    return _datasets() / f"{sha256[:32]}-{size}-v{_CACHE_VERSION}.safetensors"


def partition(dataset: Dataset, validation: int, seed: int, warn: bool = True) -> Partition:
    """Complete a data set's splits: a test, then a validation split are cut from `train` where missing.

    Args:
        validation: pictures to hold out of the training split, at most a fifth of it.
        seed: the same seed gives the same splits.
        warn: whether to log which classes a split that is cut has no pictures of.

    Raises:
        InputError: there are too few different pictures to hold any out.
    """
    splits, made = dict(dataset.splits), []
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for name, count in (("test", int(len(splits["train"]) * TEST_SHARE)), ("validation", validation)):
        if name not in splits:
            train = splits["train"]
            mask = held_out(train.labels, train.clusters, min(count, len(train) // 5), seed)
            if not mask.any():
                raise InputError(
                    f"No {name} split can be cut from {len(train)} training pictures: they are too few or nearly "
                    f"the same. Add pictures, or a {_FOLDERS[name]}/ folder."
                )
            splits[name], splits["train"] = train.subset(mask), train.subset(~mask)
            made.append(name)
            missing = sorted(set(train.labels.tolist()) - set(splits[name].labels.tolist()))
            if missing and warn:
                log.warning(
                    "The %s split has no pictures of %s, so its figures tell nothing of them: all that there are "
                    "nearly repeat one another and stay in training. Add different ones, or a %s/ folder.",
                    name,
                    [dataset.classes[label] for label in missing],
                    _FOLDERS[name],
                )
    return Partition(splits["train"], splits["validation"], splits["test"], tuple(made))


def _decode_source(path: Path, digest: str, size: int, least_classes: int) -> Dataset:
    pixels: dict[PurePosixPath, Pixels] = {}
    damaged: dict[PurePosixPath, str] = {}
    folders: list[PurePosixPath] = []
    others: list[PurePosixPath] = []
    for entry, result in _decoded(source.read(path), size):
        if entry.data is None:
            folders.append(entry.path)
        elif result is None:
            others.append(entry.path)
        else:
            damaged.pop(entry.path, None)  # of a tar that was added to, the last file of a name counts
            pixels.pop(entry.path, None)
            if isinstance(result, ImageError):
                damaged[entry.path] = str(result)
            else:
                pixels[entry.path] = result
    findings = preflight.inspect(list(pixels), folders, damaged, others, least_classes)
    if findings.errors:
        _warn(findings.warnings)
        raise InputError(*findings.errors)
    return _assemble(pixels, findings, digest)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning)


def _decoded(entries: Iterable[source.Entry], size: int) -> Iterator[tuple[source.Entry, Pixels | ImageError | None]]:
    """Each entry with its pixels, the reason why it has none, or None if it is no picture at all."""

    def attempt(entry: source.Entry) -> Pixels | ImageError | None:
        if entry.data is None or not preflight.is_picture_name(entry.path):
            return None
        try:
            return decode(entry.data, size, _max_pixels)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(processors()) as pool:
        for chunk in _chunks(entries):
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)


def _chunks(entries: Iterable[source.Entry]) -> Iterator[list[source.Entry]]:
    chunk: list[source.Entry] = []
    held = 0
    for entry in entries:
        chunk.append(entry)
        held += len(entry.data or b"")
        if len(chunk) == _DECODED_AT_ONCE or held >= _BYTES_AT_ONCE:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _assemble(pixels: dict[PurePosixPath, Pixels], findings: preflight.Findings, digest: str) -> Dataset:
    label = {name: index for index, name in enumerate(findings.classes)}
    splits = {}
    for split in ("train", "validation", "test"):
        places = {path: place for path, place in findings.places.items() if place.split == split}
        if not places:
            continue
        paths = sorted(places, key=lambda path: preflight.natural(str(path)))
        images = torch.from_numpy(np.stack([pixels[path] for path in paths]))
        labels = torch.tensor([label[places[path].label] for path in paths])
        splits[split] = Split(images, labels, tuple(map(str, paths)), duplicate_clusters(images))
    return Dataset(findings.classes, splits, digest, (*findings.warnings, *_repeats(splits)))


def _repeats(splits: Mapping[str, Split]) -> Iterator[str]:
    """What has to be said of pictures that are there more than once, where they should not be."""
    for name, split in splits.items():
        lowest, highest = (
            torch.zeros_like(split.labels).scatter_reduce(0, split.clusters, split.labels, how, include_self=False)
            for how in ("amin", "amax")
        )
        torn = split.subset((lowest != highest)[split.clusters])
        if len(torn):
            yield f"{len(torn)} pictures of the {name} split nearly repeat one of another class: {some(torn.names)}"
        if name != "train":
            known = split.subset(repeating(split.images, splits["train"].images))
            if len(known):
                yield f"{len(known)} pictures of the {name} split nearly repeat training pictures: {some(known.names)}"


def _write_cache(path: Path, dataset: Dataset) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, split in dataset.splits.items():
        tensors |= {
            f"{name}.images": split.images,
            f"{name}.labels": split.labels,
            f"{name}.clusters": split.clusters,
        }
    about = {
        "classes": json.dumps(dataset.classes),
        "sha256": dataset.sha256,
        "names": json.dumps({name: split.names for name, split in dataset.splits.items()}),
        "warnings": json.dumps(dataset.warnings),
    }
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    os.close(handle)
    try:
        save_file(tensors, partial, about)
        Path(partial).replace(path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _read_cache(path: Path) -> Dataset:
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        splits = {
            name: Split(
                file.get_tensor(f"{name}.images"),
                file.get_tensor(f"{name}.labels"),
                tuple(names),
                file.get_tensor(f"{name}.clusters"),
            )
            for name, names in json.loads(about["names"]).items()
        }
    warnings = tuple(json.loads(about["warnings"]))
    return Dataset(tuple(json.loads(about["classes"])), splits, about["sha256"], warnings)
