"""Where pictures come from: a folder, an archive, CIFAR-10's own batch files, or its download."""

import contextlib
import hashlib
import io
import logging
import lzma
import os
import pickle
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn, Self

import numpy as np
from PIL import Image

from training.digest import file_sha256
from training.errors import InputError
from training.picture import EXTENSIONS

log = logging.getLogger(__name__)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MAX_FILE_BYTES = 100_000_000  # of one picture; a small archive can hold a file of any size
_HEADER_BYTES = 1 << 16  # of all that a tar says of one member; names and attributes have few hundred
_LISTED_BYTES = 1024  # of an archive's list of files, for each that it may hold; 100 are usual
_ZIP_ENTRY = b"PK\x01\x02"  # begins each entry of a zip's list (APPNOTE.TXT 4.3.12)
_ZIP_UTF8 = 0x800  # flag of a name that is UTF-8, else it is code page 437 (APPNOTE.TXT 4.4.4)
_ZIP_UNICODE_PATH = 0x7075  # kind of the extra field that holds a name beyond the code page (APPNOTE.TXT 4.6.9)
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_FILES = {
    **{f"data_batch_{number}{ending}": "train" for number in range(1, 6) for ending in ("", ".bin")},
    **{f"test_batch{ending}": "test" for ending in ("", ".bin")},
}
_UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Entry:
    """One file of a source, or one of its folders.

    Attributes:
        path: place inside the source, with forward slashes.
        data: the file's bytes, left empty where its name is not one of a picture; None for a folder.
    """

    path: PurePosixPath
    data: bytes | None


Kind = Literal["file", "folder", "link", "device"]


@dataclass(frozen=True)
class Member:
    """What an archive says of one thing in it; nothing is unpacked to find out.

    Attributes:
        name: as it is stored.
        path: its place below the archive's root.
        size: bytes, unpacked.
    """

    name: str
    path: PurePosixPath
    size: int
    kind: Kind


def locate(source: str, cache: Path) -> Path:
    """Turn a SOURCE argument into an existing path; `cifar10` is downloaded into `cache` by torchvision.

    Raises:
        InputError: there is nothing at that path, or it is neither a folder nor a known archive.
    """
    if source == "cifar10" and not Path(source).exists():
        return _download_cifar10(cache)
    # Path's own methods raise where a name is too long or `~name` is nobody's.
    path = Path(os.path.expanduser(source))  # noqa: PTH111
    if not source or not os.path.exists(path):  # noqa: PTH110
        raise InputError(f"There is nothing at {source!r}. Name a folder, an archive, or cifar10.")
    if not path.is_dir() and not (path.is_file() and path.name.lower().endswith(ARCHIVES)):
        raise InputError(f"{source!r} is no archive that can be read. Use one of {', '.join(ARCHIVES)}, or a folder.")
    return path


def _download_cifar10(cache: Path) -> Path:
    folder, cifar10 = cache / "cifar10", _torchvision_cifar10()
    try:
        cifar10(folder, download=True)
    except Exception as error:
        raise InputError(
            f"CIFAR-10 could not be downloaded ({error}). Fetch cifar-10-python.tar.gz where there is a "
            "network and name that file, or the folder it unpacks to, instead of cifar10."
        ) from error
    return Path(folder, cifar10.base_folder)


def _torchvision_cifar10() -> Any:
    """The class that knows where the official files are and what their checksums are."""
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 (seconds to import, and few sources need it)

    return CIFAR10


def sha256(path: Path) -> str:
    """Hash what a source holds: an archive's bytes, or a folder's files and folders with their places in it.

    Raises:
        InputError: a file or folder cannot be read.
    """
    with _explained(path):
        if path.is_file():
            return file_sha256(path)
        whole = hashlib.sha256()
        for place, real in _walk(path):
            content = "" if real.is_dir() else file_sha256(real)
            whole.update(os.fsencode(f"{place}\0{content}\n"))
        return whole.hexdigest()


def read(path: Path) -> Iterator[Entry]:
    """Yield a source's files and folders in stored order, without hidden files and system litter.

    CIFAR-10's own batch files come out as the pictures inside them: `train/cat/00042.bmp`. A tar may hold a file more
    than once; the last one counts.

    Raises:
        InputError: the source is damaged, locked, holds a file that is too large, a zip's picture twice, or a pickled
            batch file that is not the official one.
    """
    with _explained(path):
        for entry in _read_raw(path):
            if is_litter(entry.path):
                continue
            if entry.data is not None and is_batch(entry.path):
                yield from _cifar_pictures(entry.path, entry.data)
            elif not entry.path.name.startswith("batches.meta"):
                yield entry


def members(path: Path, most: int) -> Iterator[Member]:
    """List what an archive holds, in stored order.

    Args:
        most: files and folders that it may hold.

    Raises:
        InputError: it is damaged, holds more, or is a zip that holds a picture twice.
    """
    listed = 0
    with _explained(path):
        found = _zip_members(path, most) if path.suffix.lower() == ".zip" else _tar_members(path)
        for count, member in enumerate(found, 1):
            listed += len(member.name)
            _check_listed(count, listed, most)
            yield member


def is_litter(path: PurePosixPath) -> bool:
    """Whether a file or folder is hidden, or left there by a system, and is passed over."""
    return not path.parts or any(_is_litter(part) for part in path.parts)


def is_batch(path: PurePosixPath) -> bool:
    """Whether a file is one of CIFAR-10's own, which hold many pictures each."""
    return path.name in _CIFAR_FILES


def _check_listed(count: int, listed: int, most: int) -> None:
    """Refuse an archive whose list of files alone would fill the memory: `count` entries, `listed` bytes."""
    if count > most:
        raise InputError(f"The archive holds more than {most:,} files. Send fewer.")
    if listed > most * _LISTED_BYTES:
        raise InputError(
            f"The archive's list of files takes more than {most * _LISTED_BYTES:,} bytes. Shorten the names."
        )


class _ListedZip(io.FileIO):
    """A zip whose list of files is refused where it is too long, before `ZipFile` makes an object of each entry.

    `ZipFile` reads the list in one piece. What the record behind it says of its length is not to be relied on.
    """

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        _check_listed(0, size or 0, self._most)
        data: bytes = super().read(size)
        _check_listed(data.count(_ZIP_ENTRY), 0, self._most)
        return data


def _zip_members(path: Path, most: int) -> Iterator[Member]:
    with _ListedZip(path, most) as file, zipfile.ZipFile(file) as archive:
        for item, name, place in _zip_list(archive):
            yield Member(name, place, item.file_size, _zip_kind(name, item.external_attr >> 16))


def _zip_list(archive: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, str, PurePosixPath]]:
    """A zip's entries, each with its name and its place.

    Raises:
        InputError: a picture is in it more than once: one would take the other's place. In a tar that is how a file is
            replaced, and whoever reads it takes the last one.
    """
    taken: set[PurePosixPath] = set()
    for item in archive.infolist():
        name = _zip_name(item)
        place = _inside(name)
        if not name.endswith("/") and _is_wanted(place) and not is_litter(place):
            if place in taken:
                raise InputError(
                    f"{place} is in the archive more than once. Pack it again, with a name of its own for each picture."
                )
            taken.add(place)
        yield item, name, place


def _zip_name(item: zipfile.ZipInfo) -> str:
    """An entry's name with forward slashes. Some Windows programs store others."""
    name = _zip_unicode_path(item)
    if not name:
        name = item.filename
        if not item.flag_bits & _ZIP_UTF8:
            # Info-ZIP and macOS store UTF-8 without saying so; text in code page 437 is hardly ever valid UTF-8.
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _zip_unicode_path(item: zipfile.ZipInfo) -> str:
    """The name in an entry's Unicode Path field, as Windows programs write it; empty if there is none.

    The field holds a version, the checksum of the name that it stands for, and its own in UTF-8 (APPNOTE.TXT 4.6.9).
    With another checksum, a program that does not know the field has renamed the entry. From Python 3.12 on, `zipfile`
    reads the field, too.
    """
    raw = item.orig_filename.encode("utf-8" if item.flag_bits & _ZIP_UTF8 else "cp437")
    start = struct.pack("<BL", 1, zlib.crc32(raw))
    extra = item.extra
    while len(extra) > 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _ZIP_UNICODE_PATH and field.startswith(start):
            return field.removeprefix(start).decode()
    return ""


def _zip_kind(name: str, mode: int) -> Kind:
    if name.endswith("/"):
        return "folder"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) or not stat.S_IFMT(mode) else "device"


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r|*", tarinfo=_StrictTarInfo) as archive:
        for item in archive:
            yield Member(item.name, _inside(item.name), item.size, _tar_kind(item))


def _tar_kind(item: tarfile.TarInfo) -> Kind:
    if item.isdir():
        return "folder"
    if item.issym() or item.islnk():
        return "link"
    return "file" if item.isfile() else "device"


def _read_raw(path: Path) -> Iterator[Entry]:
    if path.is_dir():
        return _read_folder(path)
    return _read_zip(path) if path.suffix.lower() == ".zip" else _read_tar(path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    kind, advice = ("folder", "Mend what it names.") if path.is_dir() else ("archive", "Pack it again.")
    try:
        yield
    except _UNREADABLE as error:
        raise InputError(f"The {kind} {path.name} cannot be read ({error}). {advice}") from error


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def _is_wanted(path: PurePosixPath) -> bool:
    """Whether a file's name is one of pictures; videos and notes beside them need not go through memory."""
    return path.suffix.lower() in EXTENSIONS or is_batch(path)


def _is_read(path: PurePosixPath, size: int) -> bool:
    if not _is_wanted(path):
        return False
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path} holds {size:,} bytes; at most {MAX_FILE_BYTES:,} are read. Make it smaller.")
    return True


def _walk(root: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """Folders and files below `root` in a fixed order, each with its place; links to folders are not entered."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        for name in [*sorted(name for name in files if not _is_litter(name)), *folders]:
            real = Path(folder, name)
            # Pipes and sockets are passed over; a link that leads nowhere is not, so that opening it says so.
            if real.is_file() or real.is_dir() or real.is_symlink():
                yield PurePosixPath(real.relative_to(root).as_posix()), real


def _read_folder(path: Path) -> Iterator[Entry]:
    for place, real in _walk(path):
        if not real.is_dir():
            yield Entry(place, real.read_bytes() if _is_read(place, real.stat().st_size) else b"")
        elif real.is_symlink():
            log.warning("%s is a link to a folder and is left out; put the folder itself there", place)
        else:
            yield Entry(place, None)


def _read_zip(path: Path) -> Iterator[Entry]:
    links = 0
    with zipfile.ZipFile(path) as archive:
        for item, name, place in _zip_list(archive):
            if stat.S_ISLNK(item.external_attr >> 16):
                links += 1
            elif name.endswith("/"):
                yield Entry(place, None)
            else:
                yield Entry(place, archive.read(item) if _is_read(place, item.file_size) else b"")
    _warn_of_links(path, links)


class _Headers:
    """A tar's stream while it reads what stands before a member: long names, attributes and maps are read whole."""

    def __init__(self, stream: Any) -> None:
        self.tell = stream.tell
        self._read = stream.read
        self._left = _HEADER_BYTES

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f"headers of more than {_HEADER_BYTES:,} bytes at byte {self.tell():,}")
        self._left -= size
        data: bytes = self._read(size)
        return data


class _StrictTarInfo(tarfile.TarInfo):
    """Takes an archive that stops early, or has a damaged header in the middle, for damaged and not for finished.

    What a member's headers may take is limited, and those of earlier members and of the whole archive are not kept.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        stream = tarfile_.fileobj
        tarfile_.fileobj = _Headers(stream)  # type: ignore[assignment]  # all that is called of it here
        tarfile_.members, tarfile_.pax_headers = [], {}  # type: ignore[attr-defined]  # typeshed lacks `members`
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from error
        finally:
            tarfile_.fileobj = stream


def _read_tar(path: Path) -> Iterator[Entry]:
    links = 0
    with tarfile.open(path, "r|*", tarinfo=_StrictTarInfo) as archive:
        for item in archive:
            place = _inside(item.name)
            if item.isdir():
                yield Entry(place, None)
            elif item.issym() or item.islnk():
                links += 1
            elif item.isfile():
                file = archive.extractfile(item) if _is_read(place, item.size) else None
                yield Entry(place, file.read() if file else b"")
    _warn_of_links(path, links)


def _inside(name: str) -> PurePosixPath:
    """An archived name's place below the archive's root, without `..` or a leading slash. Nothing is unpacked."""
    return PurePosixPath(posixpath.normpath("/" + name.lstrip("/"))).relative_to("/")


def _warn_of_links(path: Path, count: int) -> None:
    if count:
        log.warning("%d links in %s are left out; pack the files themselves", count, path.name)


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
    cifar10 = _torchvision_cifar10()
    official = dict(cifar10.train_list + cifar10.test_list)
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != official.get(path.name):
        raise InputError(
            f"{path} is a pickle that differs from the official CIFAR-10 file, so it is not opened: a pickle "
            "can run code. Download it again, or use the binary version (cifar-10-batches-bin)."
        )
    batch = pickle.loads(data, encoding="latin1")  # noqa: S301  the checksum above is the official file's
    return np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32), list(batch["labels"])
