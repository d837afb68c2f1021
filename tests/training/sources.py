"""Pictures, folders and archives for tests."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.encoding import encode

KINDS = ("folder", ".zip", ".tar", ".tar.gz", ".tar.xz")

Files = Mapping[str, bytes | None]  # content by path; None for a folder


def draw(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """A picture of soft blobs; every seed gives another one."""
    blobs = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BILINEAR)


def png(seed: int) -> bytes:
    """A PNG of 32x32 pixels."""
    return encode(draw(seed))


def classes(counts: Mapping[str, int], below: str = "", first: int = 0) -> dict[str, bytes]:
    """So many different pictures for each class folder; none gives no folder."""
    files: dict[str, bytes] = {}
    for name, count in counts.items():
        for number in range(count):
            files[f"{below}{name}/{number}.png"] = png(first + len(files))
    return files


def make(root: Path, kind: str, files: Files) -> Path:
    """Write `files` in the order they are given, as a folder or as an archive with that ending."""
    if kind == "folder":
        folder = root / "source"
        folder.mkdir()
        for name, data in files.items():
            path = folder / name
            (path if data is None else path.parent).mkdir(parents=True, exist_ok=True)
            if data is not None:
                path.write_bytes(data)
        return folder
    archive = root / f"source{kind}"
    if kind == ".zip":
        _zip(archive, files)
    else:
        _tar(archive, files)
    return archive


def _zip(path: Path, files: Files) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            item = zipfile.ZipInfo(name if data is not None else f"{name}/")
            archive.writestr(item, data or b"", zipfile.ZIP_DEFLATED)


def _tar(path: Path, files: Files) -> None:
    compression = path.suffix.removeprefix(".") if path.suffix != ".tar" else ""
    _append(path, f"w:{compression}", files)


def add(path: Path, files: Files) -> None:
    """Append to a `.tar`, as `tar -r` does: a file that it has already is in it twice then."""
    _append(path, "a", files)


def _append(path: Path, mode: str, files: Files) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # the mode is not a literal
        for name, data in files.items():
            item = tarfile.TarInfo(name)
            if data is None:
                item.type = tarfile.DIRTYPE
            item.size = len(data or b"")
            archive.addfile(item, io.BytesIO(data or b""))
