"""Where pictures come from: a folder, an archive, CIFAR-10's own batch files, or its download."""

import hashlib
import io
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

from training.errors import InputError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_FILES = {
    **{f"data_batch_{number}{ending}": "train" for number in range(1, 6) for ending in ("", ".bin")},
    **{f"test_batch{ending}": "test" for ending in ("", ".bin")},
}
_UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Entry:
    """One file of a source, or one of its folders.

    Attributes:
        path: place inside the source, with forward slashes.
        data: the file's bytes; None for a folder.
    """

    path: PurePosixPath
    data: bytes | None


def locate(source: str, cache: Path) -> Path:
    """Turn a SOURCE argument into an existing path; `cifar10` is downloaded into `cache` by torchvision.

    Raises:
        InputError: there is nothing at that path, or it is neither a folder nor a known archive.
    """
    if source == "cifar10" and not Path(source).exists():
        return _download_cifar10(cache)
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"There is nothing at {source!r}. Name a folder, an archive, or cifar10.")
    if path.is_file() and not path.name.lower().endswith(ARCHIVES):
        raise InputError(f"{source!r} is no archive that can be read. Use one of {', '.join(ARCHIVES)}, or a folder.")
    return path


def _download_cifar10(cache: Path) -> Path:
    folder = cache / "cifar10"
    try:
        CIFAR10(folder, download=True)
    except Exception as error:
        raise InputError(
            f"CIFAR-10 could not be downloaded ({error}). Fetch cifar-10-python.tar.gz where there is a "
            "network and name that file, or the folder it unpacks to, instead of cifar10."
        ) from error
    return Path(folder, CIFAR10.base_folder)


def sha256(path: Path) -> str:
    """Hash what a source holds: an archive's bytes, or every file of a folder with its place in it."""
    if path.is_file():
        return file_sha256(path)
    whole = hashlib.sha256()
    for file in _files_below(path):
        whole.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    return whole.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of one file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Iterator[Entry]:
    """Yield a source's files and folders in stored order, without hidden files and system litter.

    CIFAR-10's own batch files come out as the pictures inside them: `train/cat/00042.bmp`.

    Raises:
        InputError: the archive is damaged, locked, or a pickled batch file is not the official one.
    """
    for entry in _read_raw(path):
        if any(part.startswith(".") or part in JUNK for part in entry.path.parts):
            continue
        if entry.data is not None and entry.path.name in _CIFAR_FILES:
            yield from _cifar_pictures(entry.path, entry.data)
        elif not entry.path.name.startswith("batches.meta"):
            yield entry


def _read_raw(path: Path) -> Iterator[Entry]:
    if path.is_dir():
        yield from _read_folder(path)
        return
    try:
        if path.suffix.lower() == ".zip":
            yield from _read_zip(path)
        else:
            yield from _read_tar(path)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise InputError(f"The archive {path.name} cannot be read ({error}). Pack it again.") from error


def _files_below(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            yield Path(folder, name)


def _read_folder(path: Path) -> Iterator[Entry]:
    for folder, folders, files in os.walk(path):
        folders.sort()
        inside = PurePosixPath(Path(folder).relative_to(path).as_posix())
        if inside.parts:
            yield Entry(inside, None)
        for name in sorted(files):
            yield Entry(inside / name, Path(folder, name).read_bytes())


def _read_zip(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if stat.S_ISLNK(item.external_attr >> 16):
                continue
            yield Entry(PurePosixPath(item.filename), None if item.is_dir() else archive.read(item))


def _read_tar(path: Path) -> Iterator[Entry]:
    with tarfile.open(path, "r|*") as archive:
        for item in archive:
            if item.isdir():
                yield Entry(PurePosixPath(item.name), None)
            elif item.isfile() and (file := archive.extractfile(item)):
                yield Entry(PurePosixPath(item.name), file.read())


def _cifar_pictures(path: PurePosixPath, data: bytes) -> Iterator[Entry]:
    pixels, labels = _cifar_binary(path, data) if path.suffix == ".bin" else _cifar_pickle(path, data)
    split = _CIFAR_FILES[path.name]
    number = int(path.stem[-1]) if split == "train" else 1
    for place, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        index = (number - 1) * len(pixels) + place
        name = PurePosixPath(split, CIFAR10_CLASSES[label], f"{index:05}.bmp")
        lossless = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(lossless, "BMP")
        yield Entry(name, lossless.getvalue())


def _cifar_binary(path: PurePosixPath, data: bytes) -> tuple[np.ndarray, list[int]]:
    if not data or len(data) % _CIFAR_RECORD:
        raise InputError(f"{path} is cut short: CIFAR-10's binary batches hold {_CIFAR_RECORD} bytes a picture.")
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
    if records[:, 0].max() >= len(CIFAR10_CLASSES):
        raise InputError(f"{path} is no CIFAR-10 batch: it has a label of {records[:, 0].max()}.")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].tolist()


def _cifar_pickle(path: PurePosixPath, data: bytes) -> tuple[np.ndarray, list[int]]:
    official = dict(CIFAR10.train_list + CIFAR10.test_list)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != official.get(path.name):
        raise InputError(
            f"{path} is a pickle that differs from the official CIFAR-10 file, so it is not opened: a pickle "
            "can run code. Download it again, or use the binary version (cifar-10-batches-bin)."
        )
    batch = pickle.loads(data, encoding="latin1")  # noqa: S301  the checksum above is the official file's
    return np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32), list(batch["labels"])
