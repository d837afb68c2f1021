"""Small plain PNGs: whatever is read is what Pillow reads."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.encoding import encode
from tests.training.sources import draw
from training.png import read_plain

PLAIN = encode(draw(1, 40, 30), "PNG")
_PIXELS = 40 * 30


def pillows(data: bytes) -> np.ndarray | None:
    """What Pillow makes of it."""
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB"))
    except Exception:
        return None


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes, place: int = 33) -> bytes:
    return PLAIN[:place] + chunk(kind, data) + PLAIN[place:]


def split(data: bytes, size: int) -> bytes:
    """The same picture with its pixels in chunks of `size` bytes."""
    start = data.index(b"IDAT") - 4
    length = int.from_bytes(data[start : start + 4])
    stream = data[start + 8 : start + 8 + length]
    parts = [chunk(b"IDAT", stream[place : place + size]) for place in range(0, length, size)]
    return data[:start] + b"".join(parts) + data[start + 12 + length :]


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        split(PLAIN, 100),
        with_chunk(b"gAMA", struct.pack(">I", 45455)),
        with_chunk(b"sRGB", b"\0"),
        with_chunk(b"pHYs", struct.pack(">IIB", 3000, 3000, 1)),
        PLAIN + b"more",
    ],
)
def test_plain_pictures_are_read(data: bytes) -> None:
    picture = read_plain(data, _PIXELS)
    assert picture is not None
    assert np.array_equal(np.asarray(picture), np.asarray(draw(1, 40, 30)))
    found = pillows(data)
    assert found is not None
    assert np.array_equal(np.asarray(picture), found)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_other_kinds_are_left_to_pillow(mode: str) -> None:
    assert (
        read_plain(encode(draw(1, 40, 30).convert("L" if mode == "I;16" else mode).convert(mode), "PNG"), 1200) is None
    )


def test_what_may_change_the_pixels_is_left_to_pillow() -> None:
    text = PngInfo()
    text.add_text("Comment", "a comment may hold an orientation")
    turned = Image.Exif()
    turned[0x0112] = 6
    for options in ({"transparency": (1, 2, 3)}, {"pnginfo": text}, {"exif": turned}):
        assert read_plain(encode(draw(1, 40, 30), "PNG", **options), _PIXELS) is None
    several = encode(draw(1, 40, 30), "PNG", save_all=True, append_images=[draw(2, 40, 30)])
    assert read_plain(several, _PIXELS) is None
    assert read_plain(encode(draw(1, 40, 30), "JPEG"), _PIXELS) is None
    assert read_plain(b"", _PIXELS) is None


@given(width=st.integers(1, 9), data=st.data())
def test_every_filter_is_undone_as_pillow_undoes_it(width: int, data: st.DataObject) -> None:
    row = st.tuples(st.integers(0, 5), st.binary(min_size=3 * width, max_size=3 * width))
    filtered = data.draw(st.lists(row, min_size=1, max_size=6))
    header = struct.pack(">IIBBBBB", width, len(filtered), 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(bytes([kind]) + values for kind, values in filtered))
    whole = PLAIN[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    picture = read_plain(whole, _PIXELS)
    if all(kind < 5 for kind, _ in filtered):
        assert np.array_equal(np.asarray(picture), np.asarray(pillows(whole)))
    else:
        assert picture is None


def test_larger_pictures_are_left_to_pillow() -> None:
    assert read_plain(PLAIN, _PIXELS - 1) is None


@given(st.data())
def test_damaged_pictures_are_read_as_pillow_reads_them_or_not_at_all(draw_: st.DataObject) -> None:
    base = draw_.draw(st.sampled_from([PLAIN, split(PLAIN, 100), with_chunk(b"gAMA", b"\0\0\1\0")]))
    damaged = bytearray(base)
    for _ in range(draw_.draw(st.integers(1, 3))):
        damaged[draw_.draw(st.integers(0, len(damaged) - 1))] = draw_.draw(st.integers(0, 255))
    data = bytes(damaged[: draw_.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))])
    picture = read_plain(data, 10 * _PIXELS)
    if picture is not None:
        found = pillows(data)
        assert found is not None
        assert np.array_equal(np.asarray(picture), found)


@given(st.integers(0, 3), st.integers(33, len(PLAIN)), st.binary(max_size=12))
def test_chunks_in_odd_places_are_read_as_pillow_reads_them_or_not_at_all(which: int, place: int, data: bytes) -> None:
    kind = (b"gAMA", b"IDAT", b"tRNS", b"IEND")[which]
    odd = with_chunk(kind, data, place)
    picture = read_plain(odd, _PIXELS)
    if picture is not None:
        found = pillows(odd)
        assert found is not None
        assert np.array_equal(np.asarray(picture), found)
