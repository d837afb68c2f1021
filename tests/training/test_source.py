"""Folders, archives and CIFAR-10's own files, as they are stored."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from tests.encoding import encode
from tests.training.sources import KINDS, Files, classes, draw, make, png
from training import source
from training.errors import InputError
from training.source import CIFAR10_CLASSES, Entry, locate, members, read, sha256

KINDS_OF_ARCHIVE = KINDS[1:]
NOBODY = 65534


def contents(path: Path) -> dict[str, bytes | None]:
    """All that a source holds, by path."""
    return {str(entry.path): entry.data for entry in read(path)}


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_folders(tmp_path: Path, kind: str) -> None:
    files: Files = {"cat": None, **classes({"cat": 2}), "dog": None, "dog/größe 1.PNG": png(9), "fish": None}
    assert contents(make(tmp_path, kind, files)) == files


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_and_litter_are_skipped(tmp_path: Path, kind: str) -> None:
    litter = [".DS_Store", "cat/.hidden.png", "cat/._1.png", "__MACOSX/cat/1.png", "cat/Thumbs.db", ".git/x/1.png"]
    files: Files = {"cat": None, "cat/1.png": png(1), **dict.fromkeys(litter, b"litter")}
    assert contents(make(tmp_path, kind, files)) == {"cat": None, "cat/1.png": png(1)}


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_pictures_are_named_and_not_read(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, {"cat/1.png": png(1), "cat/film.mp4": b"not for memory", "notes.txt": b"hello"})
    found = contents(path)
    found.pop("cat", None)
    assert found == {"cat/1.png": png(1), "cat/film.mp4": b"", "notes.txt": b""}


def test_picture_file_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", {"cat/1.png": bytes(source.MAX_FILE_BYTES + 1)})
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match=r"cat/1\.png holds 100,000,001 bytes; at most 100,000,000"):
        contents(path)


def test_folder_is_read_in_a_fixed_order(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {f"{name}/{number}.png": b"" for name in "cab" for number in (3, 1, 2)})
    assert list(contents(path)) == ["a", "b", "c", *(f"{name}/{number}.png" for name in "abc" for number in (1, 2, 3))]


@cache
def packed(kind: str) -> bytes:
    """A small archive of that kind."""
    file = io.BytesIO()
    pictures = {f"cat/{seed}.png": encode(draw(seed, 12, 12)) for seed in range(3)}
    if kind == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in pictures.items():
                archive.writestr(name, data)
        return file.getvalue()
    compression = {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz"}[kind]
    with tarfile.open(fileobj=file, mode=compression) as tar:  # type: ignore[call-overload]  # not a literal
        for name, data in pictures.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS_OF_ARCHIVE)
@settings(max_examples=60)
@given(data=st.data())
def test_truncated_archive_never_passes_for_a_smaller_one(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / f"cut{kind}"
    path.write_bytes(packed(kind))
    whole = contents(path)
    assert len(whole) == 3
    path.write_bytes(packed(kind)[: data.draw(st.integers(0, len(packed(kind)) - 1))])
    try:
        found = contents(path)
    except InputError as error:
        assert str(error).startswith(f"The archive cut{kind} cannot be read (")
        assert str(error).endswith("). Pack it again.")
    else:
        assert found == whole  # only the padding behind the last file was lost


@pytest.mark.parametrize("kind", KINDS_OF_ARCHIVE)
def test_archive_cut_in_the_middle_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut{kind}"
    path.write_bytes(packed(kind)[: len(packed(kind)) // 3])
    with pytest.raises(InputError, match=r"The archive cut.* cannot be read .* Pack it again\."):
        contents(path)


@pytest.mark.parametrize("cut", [512, 700])
def test_tar_that_ends_between_two_files_is_refused(tmp_path: Path, cut: int) -> None:
    second = packed(".tar").index(b"cat/1.png")
    path = tmp_path / "cut.tar"
    path.write_bytes(packed(".tar")[: second + cut - 512])
    with pytest.raises(InputError, match=r"cut\.tar cannot be read"):
        contents(path)


def test_tar_with_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    damaged = bytearray(packed(".tar"))
    damaged[damaged.index(b"cat/1.png") + 100] ^= 1  # the file's mode: the checksum no longer holds
    path = tmp_path / "damaged.tar"
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="bad checksum"):
        contents(path)


def tar_of_headers(path: Path, *blocks: bytes) -> Path:
    """Blocks that stand before a member `cat/1.png`, in a tar."""
    member = tarfile.TarInfo("cat/1.png").tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(b"".join(blocks) + member + bytes(1024))
    return path


def header(kind: bytes, size: int) -> bytes:
    """The block that says that `size` bytes of a header of that kind follow."""
    item = tarfile.TarInfo("header")
    item.type, item.size = kind, size
    return item.tobuf(tarfile.USTAR_FORMAT)


def sparse(blocks: int) -> bytes:
    """A sparse member's header whose map goes on over so many blocks."""
    first = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    first[482] = 1  # the map goes on
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    return bytes(first) + (bytes(504) + b"\1" + bytes(7)) * (blocks - 1) + bytes(512)


LONG_HEADERS = {
    **{
        f"{kind.decode()}": header(kind, 70_144) + b"a" * 70_144
        for kind in (b"L", b"K", b"x", b"g", tarfile.SOLARIS_XHDTYPE)
    },
    "chain": (header(b"L", 512) + b"a" * 512) * 100,
    "map": sparse(200),
    "less than none": header(b"L", 0)[:124] + b"\xff" * 12 + header(b"L", 0)[136:],
}


@pytest.mark.parametrize("name", LONG_HEADERS)
def test_tar_with_an_absurd_header_is_refused_unread(tmp_path: Path, name: str) -> None:
    path = tar_of_headers(tmp_path / "long.tar", LONG_HEADERS[name])
    for look in (lambda: contents(path), lambda: list(members(path, 10))):
        with pytest.raises(InputError, match=r"long\.tar cannot be read \(.*\)\. Pack it again\."):
            look()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_a_tar(tmp_path: Path, form: int) -> None:
    names = [f"{'größe' * 100}/{number}.png" for number in range(200)]
    with tarfile.open(tmp_path / "long.tar", "w", format=form) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    assert list(contents(tmp_path / "long.tar")) == names
    assert [member.name for member in members(tmp_path / "long.tar", 200)] == names


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_of_a_tar_do_not_gather_in_memory(tmp_path: Path, kind: bytes) -> None:
    def stored(number: int) -> bytes:
        record = b"50000 key%05d=" % number
        return header(kind, 50_000) + (record + b"a" * 49_999)[:49_999] + b"\n" + bytes(176)

    member = tarfile.TarInfo("cat/1.png").tobuf(tarfile.USTAR_FORMAT)
    path = tar_of_headers(tmp_path / "many.tar", *(stored(number) + member for number in range(400)))
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in members(path, 401)) == 401
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def zip_of_nothing(path: Path, count: int, claimed: int, zip64: bool) -> Path:
    """A zip whose list has `count` entries of empty files, and says that it has `claimed`."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    size = len(entry) * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, claimed, claimed, size, 0, 0)
    if zip64:
        end = (
            struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, claimed, claimed, size, 0)
            + struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
            + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        )
    path.write_bytes(entry * count + end)
    return path


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("claimed", [1, 60_000])
def test_zip_of_too_many_files_is_refused_before_they_are_listed(tmp_path: Path, claimed: int, zip64: bool) -> None:
    path = zip_of_nothing(tmp_path / "many.zip", 60_000, claimed, zip64)
    assert sum(1 for _ in members(path, 60_000)) == 60_000
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"^The archive holds more than 59,999 files\. Send fewer\.$"):
            next(members(path, 59_999))
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS_OF_ARCHIVE)
def test_list_of_files_that_is_too_long_is_refused(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, {f"{'a' * 2000}/{number}.png": b"" for number in range(10)})
    assert sum(1 for _ in members(path, 30)) == 10
    with pytest.raises(InputError, match=r"list of files takes more than 10,240 bytes\. Shorten the names\.$"):
        list(members(path, 10))


@pytest.mark.parametrize("kind", KINDS_OF_ARCHIVE)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_archive_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged{kind}"
    damaged = bytearray(packed(kind))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        found = contents(path)
    except InputError as error:
        assert "damaged" in str(error) or "is a pickle" in str(error)
    else:
        assert all(not PurePosixPath(name).is_absolute() for name in found)


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    # The zip of three PNGs with the first bit of every flag set, as an encrypted archive has it.
    locked = bytearray(packed(".zip"))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = locked.find(signature)
        while place >= 0:
            locked[place + flags] |= 1
            place = locked.find(signature, place + 1)
    path = tmp_path / "locked.zip"
    path.write_bytes(locked)
    with pytest.raises(InputError, match=r"locked\.zip cannot be read .*encrypted"):
        contents(path)


def test_zip_with_damage_inside(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(5000)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED):
        path = tmp_path / f"{method}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("cat/1.png", noise)
        whole = path.read_bytes()
        path.write_bytes(whole[:40] + b"damage" * 10 + whole[100:])
        with pytest.raises(InputError, match=r"\.zip cannot be read .* Pack it again\."):
            contents(path)


def test_zip_with_a_broken_name(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", {"größe/1.png": png(1)})
    path.write_bytes(path.read_bytes().replace("ö".encode(), b"\xff\xff"))
    with pytest.raises(InputError, match=r"source\.zip cannot be read .* Pack it again\."):
        contents(path)


def test_zip_that_promises_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("cat/1.png", png(1))
    damaged = bytearray(path.read_bytes())
    directory = damaged.index(b"PK\x01\x02")
    for place in (18, directory + 20):  # the sizes before the file and in the directory
        damaged[place : place + 8] = struct.pack("<LL", 60_000, 60_000)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"source\.zip cannot be read"):
        contents(path)


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A folder of a user who is not root: root may read everything."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        if user == 0:
            os.chown(folder, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_folder_that_may_not_be_read(ordinary_user: Path) -> None:
    path = make(ordinary_user, "folder", {"cat/1.png": png(1), "dog/1.png": png(2)})
    (path / "dog").chmod(0)
    try:
        with pytest.raises(InputError, match=r"The folder source cannot be read .*dog"):
            contents(path)
    finally:
        (path / "dog").chmod(0o700)


@pytest.mark.parametrize("kind", KINDS_OF_ARCHIVE)
def test_file_that_is_no_archive_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"text{kind}"
    path.write_text("hello " * 1000)
    with pytest.raises(InputError, match="cannot be read"):
        contents(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        contents(path)


@pytest.mark.parametrize("kind", KINDS_OF_ARCHIVE)
def test_names_stay_inside(tmp_path: Path, kind: str) -> None:
    names = ["/cat/1.png", "../cat/2.png", "./cat/3.png", "x/../cat/4.png", "//cat//5.png", "../../../cat/6.png"]
    path = make(tmp_path, kind, {"./": None} | {name: png(1) for name in names})
    assert list(contents(path)) == [f"cat/{number}.png" for number in range(1, 7)]


def test_zip_with_backslashes(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", {"pets\\cat\\1.png": png(1), "pets\\dog\\": b""})
    assert contents(path) == {"pets/cat/1.png": png(1), "pets/dog": None}


def without_utf8_flags(path: Path) -> None:
    """Clear the flag that names are UTF-8, in front of each file and in the list, as Info-ZIP and macOS leave it."""
    packed = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = packed.find(signature)
        while place >= 0:
            packed[place + flags + 1] &= ~0x08
            place = packed.find(signature, place + 1)
    path.write_bytes(packed)


@pytest.mark.parametrize("flagged", [True, False])
def test_zip_with_utf8_names_whether_it_says_so_or_not(tmp_path: Path, flagged: bool) -> None:
    files: Files = {"Äpfel": None, "Äpfel/größe 1.png": png(1), "🐈/猫.png": png(2), "a\\é.png": png(3)}
    path = make(tmp_path, ".zip", files)
    if not flagged:
        without_utf8_flags(path)
    assert contents(path) == {name.replace("\\", "/"): data for name, data in files.items()}
    assert [str(member.path) for member in members(path, 10)] == list(contents(path))


def test_zip_with_names_in_code_page_437(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", {"xpfel/gr--e.png": png(1)})
    path.write_bytes(path.read_bytes().replace(b"xpfel/gr--e", "Äpfel/größe".encode("cp437")))
    assert contents(path) == {"Äpfel/größe.png": png(1)}
    assert [member.name for member in members(path, 10)] == ["Äpfel/größe.png"]


def zip_of_unicode_paths(path: Path, files: Mapping[str, bytes], before: bytes = b"") -> Path:
    """A zip whose names are `?` beyond the code page, each with its Unicode Path field, as WinZip and WinRAR write it.

    Args:
        before: stands before each field's text, which it may break.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            raw = name.encode("cp437", "replace")
            text = before + name.encode()
            item = zipfile.ZipInfo(f"{number}".rjust(len(raw), "x"))
            extra = struct.pack("<HHBL", 0x7075, 5 + len(text), 1, zlib.crc32(raw)) + text
            item.extra = struct.pack("<HHB", 0x5455, 1, 0) + extra  # behind a field of another kind, here of times
            archive.writestr(item, data)
    packed = path.read_bytes()
    for number, name in enumerate(files):
        raw = name.encode("cp437", "replace")
        packed = packed.replace(f"{number}".rjust(len(raw), "x").encode(), raw)
    path.write_bytes(packed)
    return path


def test_zip_with_unicode_paths(tmp_path: Path) -> None:
    files = {"кошка/1.png": png(1), "собак/1.png": png(2), "größe/1.png": png(3), "é\\猫.png": png(4)}
    path = zip_of_unicode_paths(tmp_path / "windows.zip", files)
    assert path.read_bytes().count(b"?????/1.png") == 2 * 2
    assert contents(path) == {name.replace("\\", "/"): data for name, data in files.items()}
    assert [str(member.path) for member in members(path, 10)] == list(contents(path))


def test_unicode_path_of_an_entry_that_was_renamed_is_passed_over(tmp_path: Path) -> None:
    path = zip_of_unicode_paths(tmp_path / "renamed.zip", {"кошка/1.png": png(1)})
    path.write_bytes(path.read_bytes().replace(b"?????/1.png", b"hamster.png"))
    assert contents(path) == {"hamster.png": png(1)}


def test_unicode_path_that_is_broken_is_refused(tmp_path: Path) -> None:
    path = zip_of_unicode_paths(tmp_path / "broken.zip", {"кошка/1.png": png(1)}, b"\xff")
    for look in (lambda: contents(path), lambda: list(members(path, 10))):
        with pytest.raises(InputError, match=r"broken\.zip cannot be read .* Pack it again\."):
            look()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["cat/1.png", "./cat//1.png", "cat\\1.png"])
def test_zip_that_holds_a_picture_twice_is_refused(tmp_path: Path, again: str) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat/", "cat/", "notes.txt", "notes.txt", "__MACOSX/1.png", "__MACOSX/1.png", "cat/1.png"):
            archive.writestr(name, b"")
    assert len(list(read(path))) == 5
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(again, png(2))
    for look in (lambda: contents(path), lambda: list(members(path, 10))):
        with pytest.raises(InputError) as caught:
            look()
        assert caught.value.problems == (
            "cat/1.png is in the archive more than once. Pack it again, with a name of its own for each picture.",
        )


def test_links_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path, "folder", {"cat/1.png": png(1)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_bytes(png(2))
    (path / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (path / "loop").symlink_to(path, target_is_directory=True)
    (path / "cat" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert contents(path) == {"cat": None, "cat/1.png": png(1), "cat/2.png": png(2)}
    assert [record.getMessage().split()[0] for record in caplog.records] == ["dog", "loop"]


def test_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {"cat/1.png": png(1)})
    (path / "cat" / "2.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(InputError, match=r"The folder source cannot be read .*2\.png"):
        contents(path)
    with pytest.raises(InputError, match=r"The folder source cannot be read .*2\.png"):
        sha256(path)


def test_pipe_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {"cat/1.png": png(1)})
    os.mkfifo(path / "cat" / "2.png")
    assert contents(path) == {"cat": None, "cat/1.png": png(1)}
    assert len(sha256(path)) == 64


def test_links_in_a_tar_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        for name, kind in (("cat/1.png", tarfile.SYMTYPE), ("cat/2.png", tarfile.LNKTYPE)):
            item = tarfile.TarInfo(name)
            item.type, item.linkname = kind, "/etc/passwd"
            archive.addfile(item)
    assert contents(tmp_path / "links.tar") == {}
    assert "2 links in links.tar are left out" in caplog.text


def test_links_in_a_zip_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        item = zipfile.ZipInfo("cat/1.png")
        item.external_attr = 0o120777 << 16
        archive.writestr(item, "/etc/passwd")
    assert contents(tmp_path / "links.zip") == {}
    assert "1 links in links.zip are left out" in caplog.text


def cifar_records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [N] and pixels uint8 [N, 3072], as in CIFAR-10's files."""
    random = np.random.default_rng(seed)
    return np.arange(count, dtype=np.uint8) % 10, random.integers(0, 256, (count, 3072), dtype=np.uint8)


def pixels_of(data: bytes | None) -> np.ndarray:
    """The picture's pixels in the order of CIFAR-10's files, uint8 [3072]."""
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1).reshape(-1)


def test_cifar10_binary_batches(tmp_path: Path) -> None:
    labels, pixels = cifar_records(20)
    records = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
    batches: dict[str, bytes] = {f"data_batch_{number}.bin": records for number in range(1, 6)}
    batches |= {"test_batch.bin": records, "batches.meta.txt": b"airplane", "readme.html": b"<html>"}
    path = make(tmp_path, ".tar.gz", {f"cifar-10-batches-bin/{name}": data for name, data in batches.items()})
    found = contents(path)
    assert found.pop("cifar-10-batches-bin/readme.html") == b""
    counts = {"train": 100, "test": 20}
    places = [(split, index) for split, count in counts.items() for index in range(count)]
    names = [f"{split}/{CIFAR10_CLASSES[index % 10]}/{index:05}.bmp" for split, index in places]
    assert list(found) == names
    assert np.array_equal(pixels_of(found["train/cat/00043.bmp"]), pixels[3])


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "cut short"), (bytes(3072), "cut short"), (b"\x0a" + bytes(3072), "label of 10")]
)
def test_damaged_cifar10_binary_batch_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        contents(make(tmp_path, ".tar", {"cifar-10-batches-bin/data_batch_1.bin": data}))


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch"])
def test_pickle_that_is_not_the_official_one_is_not_opened(tmp_path: Path, kind: str, name: str) -> None:
    proof = tmp_path / "opened"
    payload = pickle.dumps(_Payload(proof))
    pickle.loads(payload)  # noqa: S301  shows that the payload does what the test looks for
    assert proof.exists()
    proof.unlink()
    path = make(tmp_path, kind, {f"cifar-10-batches-py/{name}": payload})
    with pytest.raises(InputError, match=rf"{name} is a pickle that differs from the official"):
        contents(path)
    assert not proof.exists()


def test_official_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, pixels = cifar_records(20, seed=1)
    batch = pickle.dumps({"data": pixels, "labels": labels.tolist()}, protocol=2)
    # torchvision holds the official checksums; the official files are too large for a test.
    checksum = hashlib.md5(batch, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_2", checksum]])
    found = contents(make(tmp_path, ".tar.gz", {"cifar-10-batches-py/data_batch_2": batch}))
    assert list(found)[3] == "train/cat/00023.bmp"
    assert np.array_equal(pixels_of(found["train/cat/00023.bmp"]), pixels[3])


@pytest.mark.parametrize("name", ["", "nothing", "no/such/folder", "~nobody-of-that-name/x", "a" * 5000, "a\0b"])
def test_path_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^There is nothing at '.*Name a folder, an archive, or cifar10\.$"):
        locate(name, tmp_path)


def test_file_that_is_neither_folder_nor_archive(tmp_path: Path) -> None:
    (tmp_path / "data.rar").write_bytes(b"Rar!")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("data.rar", "pipe.zip"):
        with pytest.raises(InputError, match=r"is no archive that can be read\. Use one of \.zip, "):
            locate(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_locate_what_there_is(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, {"cat/1.png": png(1)})
    assert locate(str(path), tmp_path) == path


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = make(tmp_path, ".zip", {})
    assert locate("~/source.zip", tmp_path) == path


def test_folder_named_cifar10_goes_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10").mkdir()
    assert locate("cifar10", tmp_path) == Path("cifar10")


def test_download_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody answers
    with pytest.raises(InputError, match=r"CIFAR-10 could not be downloaded .*cifar-10-python\.tar\.gz"):
        locate("cifar10", tmp_path / "cache")


def test_hash_of_an_archive_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", {"cat/1.png": png(1)})
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_hash_of_a_folder_follows_what_it_holds(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {"cat/1.png": png(1), "dog/1.png": png(2), "dog/2.png": png(3)})
    seen = [sha256(path)]
    (path / "dog" / "1.png").write_bytes(png(4))
    seen.append(sha256(path))
    (path / "dog" / "1.png").rename(path / "dog" / "3.png")
    seen.append(sha256(path))
    (path / "fish").mkdir()  # an empty class is a problem that has to be seen
    seen.append(sha256(path))
    assert len(set(seen)) == 4
    (path / ".DS_Store").write_bytes(b"litter")
    (path / "__MACOSX").mkdir()
    assert sha256(path) == seen[-1]


def test_hash_of_a_folder_does_not_depend_on_where_or_in_what_order_it_was_made(tmp_path: Path) -> None:
    files = classes({"cat": 2, "dog": 2})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = make(tmp_path / "a", "folder", files)
    second = make(tmp_path / "b", "folder", dict(reversed(files.items())))
    assert sha256(first) == sha256(second)


def test_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "cat").mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(folder) + b"/cat/\xff.png")).write_bytes(png(1))
    assert len(sha256(folder)) == 64
    assert contents(folder) == {"cat": None, "cat/\udcff.png": png(1)}


def test_the_whole_of_cifar10(cifar10_archive: Path) -> None:
    found = Counter(entry.path.parts[1:3] for entry in read(cifar10_archive) if is_jpeg(entry))
    assert found == Counter(
        {(split, name): count for split, count in (("train", 5000), ("test", 1000)) for name in CIFAR10_CLASSES}
    )


def is_jpeg(entry: Entry) -> bool:
    """Whether the entry holds a JPEG."""
    return entry.data is not None and entry.data.startswith(b"\xff\xd8\xff")
