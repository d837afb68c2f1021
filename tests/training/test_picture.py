"""Encoded bytes to pixels."""

import io
import struct
import subprocess
import sys
import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests import needs
from tests.encoding import encode
from tests.training.sources import draw
from training.errors import CorruptImageError, ImageError, ImageTooLargeError, UnsupportedImageError
from training.picture import FORMATS, decode, open_picture, open_scaled, render

LOSSLESS: tuple[tuple[str, dict[str, bool]], ...] = (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}))


def pixels(image: Image.Image) -> np.ndarray:
    """What `decode` gives for a picture that needs no resizing."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@cache
def encoded(format_: str) -> bytes:
    """One picture of 40x30 pixels in every format."""
    more = {"save_all": True, "append_images": [draw(2, 40, 30)]} if format_ == "MPO" else {}
    return encode(draw(1, 40, 30), format_, **more)


def png_file(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: kinds that Pillow reads but does not write. `rows` include the filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_gives_its_colours(format_: str) -> None:
    if format_ == "MPO":
        data = encode(Image.new("RGB", (64, 48), (200, 60, 20)), "MPO", save_all=True, append_images=[draw(1, 64, 48)])
        assert open_picture(data).format == "MPO"
    else:
        data = encode(Image.new("RGB", (64, 48), (200, 60, 20)), format_)
    found = decode(data, 32)
    assert found.shape == (3, 32, 32)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.abs(found.astype(int) - np.array([200, 60, 20]).reshape(3, 1, 1)).max() <= 4


@pytest.mark.parametrize(("format_", "options"), LOSSLESS)
def test_picture_of_the_right_size_keeps_every_pixel(format_: str, options: dict[str, bool]) -> None:
    assert np.array_equal(decode(encode(draw(3), format_, **options), 32), pixels(draw(3)))


def test_whole_picture_is_resized_without_cropping() -> None:
    image = draw(4, 200, 50)
    expected = image.resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encode(image), 32), pixels(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format_: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(draw(5), format_, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data, 32), pixels(upright))


@pytest.mark.parametrize(("side", "scaled"), [(511, 511), (512, 256), (1024, 256), (2048, 256), (4096, 512)])
def test_large_jpeg_is_decoded_at_a_fraction_of_its_size(side: int, scaled: int) -> None:
    image = draw(5).resize((side, side + 40), Image.Resampling.BICUBIC)
    opened = open_scaled(encode(image, "JPEG", quality=95), 32)
    assert opened.width == scaled
    found = render(opened, 32)
    expected = pixels(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - expected).mean() < 1


@pytest.mark.parametrize("format_", ["PNG", "BMP", "WEBP"])
def test_other_formats_are_decoded_whole(format_: str) -> None:
    image = draw(5).resize((1024, 1024))
    assert open_scaled(encode(image, format_), 32).size == (1024, 1024)


@pytest.mark.parametrize(
    ("format_", "width", "height"), [("JPEG", 800, 600), ("JPEG", 2000, 3000), ("PNG", 32, 32), ("PNG", 40, 30)]
)
def test_pixels_are_the_same_without_the_compiled_modules(format_: str, width: int, height: int) -> None:
    needs.compiled()
    data = encode(draw(6, width, height), format_)
    program = (
        "import sys; sys.modules['training.scan'] = sys.modules['training.rows'] = None\n"
        "from training import compiled, picture\n"
        "assert not compiled.AVAILABLE\n"
        "sys.stdout.buffer.write(picture.decode(sys.stdin.buffer.read(), 32).tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", program], input=data, stdout=subprocess.PIPE, check=True).stdout
    assert found == decode(data, 32).tobytes()


def test_sixth_orientation_is_a_quarter_turn_to_the_right() -> None:
    stored = Image.new("RGB", (32, 32), "black")
    stored.paste("white", (0, 0, 32, 8))  # the top of the stored picture
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encode(stored, exif=exif), 32)
    assert found[:, :, 24:].min() == 255  # is the right side of what a viewer shows
    assert found[:, :, :24].max() == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01"]
)
def test_damaged_exif_does_not_cost_the_picture(format_: str, exif: bytes) -> None:
    plain, marked = encode(draw(6), format_), encode(draw(6), format_, exif=exif)
    assert plain != marked
    assert np.array_equal(decode(marked, 32), decode(plain, 32))


def test_unknown_orientation_is_taken_for_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert np.array_equal(decode(encode(draw(7), exif=exif), 32), pixels(draw(7)))


def test_grey() -> None:
    grey = draw(8).convert("L")
    found = decode(encode(grey), 32)
    assert np.array_equal(found, np.stack([np.asarray(grey)] * 3))


def test_one_bit() -> None:
    mask = draw(9).convert("1")
    assert mask.mode == "1"
    found = decode(encode(mask), 32)
    assert np.array_equal(found[1], np.asarray(mask) * np.uint8(255))


def test_one_bit_with_a_clear_colour() -> None:
    rows = b"".join(b"\x00\xff\xff\x00\x00" for _ in range(32))  # left half white, right half black
    found = decode(png_file(32, 32, 1, 0, rows, (b"tRNS", b"\x00\x00")), 32)  # black is clear
    assert found.min() == 255


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.repeat(np.array([0, 255, 256, 32768, 40000, 65535, 1, 65280], ">u2"), 4)
    rows = b"".join(b"\x00" + levels.tobytes() for _ in range(32))
    data = png_file(32, 32, 16, 0, rows)
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    assert np.array_equal(decode(data, 32)[0, 0, ::4], [0, 0, 1, 128, 156, 255, 0, 255])


def test_sixteen_bit_colour() -> None:
    row = np.tile(np.array([0xFFFF, 0x8000, 0x0100], ">u2"), 32).tobytes()
    found = decode(png_file(32, 32, 16, 2, (b"\x00" + row) * 32), 32)
    assert found[:, 5, 5].tolist() == [255, 128, 1]


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 128), (0, 0, 16, 32))
    clear.paste((0, 255, 0, 255), (0, 0, 4, 32))
    found = decode(encode(clear), 32)
    assert found[:, 0, 31].tolist() == [255, 255, 255]
    assert np.abs(found[:, 0, 10].astype(int) - [127, 127, 255]).max() <= 1
    assert found[:, 0, 0].tolist() == [0, 255, 0]


def test_grey_with_alpha() -> None:
    found = decode(encode(Image.new("LA", (32, 32), (0, 64))), 32)
    assert np.abs(found.astype(int) - 191).max() <= 1


def test_clear_colour_without_an_alpha_channel() -> None:
    image = Image.new("RGB", (32, 32), (10, 20, 30))
    image.paste((200, 0, 0), (0, 0, 16, 32))
    found = decode(encode(image, transparency=(10, 20, 30)), 32)
    assert found[:, 0, 31].tolist() == [255, 255, 255]
    assert found[:, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_palette_with_a_clear_entry(format_: str) -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    image.paste(0, (0, 0, 16, 32))
    found = decode(encode(image, format_, transparency=1), 32)
    assert found[:, 0, 0].tolist() == [255, 0, 0]
    assert found[:, 0, 31].tolist() == [255, 255, 255]


def test_palette_with_half_clear_entries() -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    found = decode(encode(image, transparency=b"\xff\x80"), 32)
    assert np.abs(found.astype(int) - 127).max() <= 1


def test_cmyk() -> None:
    # No cyan, full magenta and yellow: red.
    found = decode(encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"), 32)
    assert np.abs(found[:, 9, 9].astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:], duration=50, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert decode(data, 32)[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        encode(draw(1), "TIFF"),
        encode(draw(1), "ICO"),
        b"RIFF\x00\x00\x00\x00WAVE",
    ],
    ids=["empty", "text", "svg", "pdf", "tiff", "ico", "wave"],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match=r"Send a JPEG, PNG, WebP, GIF or BMP picture\."):
        decode(data, 32)


def test_huge_png_is_refused_by_its_header_alone() -> None:
    data = png_file(20_000, 20_000, 1, 0, bytes(20_000 * 2501))
    assert len(data) < 200_000
    with pytest.raises(ImageTooLargeError, match=r"20000 x 20000 pixels; at most 50,000,000"):
        decode(data, 32)
    # With nothing behind the header there is nothing to decode, and the answer is the same.
    with pytest.raises(ImageTooLargeError):
        decode(data[:60], 32)


@pytest.mark.parametrize(
    "chunk",
    [
        b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") + (11_999).to_bytes(3, "little"),
        b"VP8L" + struct.pack("<I", 5) + b"\x2f" + (16_382 | 11_999 << 14).to_bytes(4, "little"),
        b"VP8 " + struct.pack("<I", 10) + b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 16_383, 12_000),
    ],
    ids=["extended", "lossless", "lossy"],
)
def test_huge_webp_is_refused_by_its_header_alone(chunk: bytes) -> None:
    with pytest.raises(ImageTooLargeError, match="16383 x 12000"):
        decode(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk, 32)


@settings(max_examples=50)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "lossy WebP", "lossless WebP", "WebP with alpha"]),
)
def test_limit_is_exact(width: int, height: int, kind: str) -> None:
    mode = "RGBA" if kind.endswith("alpha") else "RGB"
    options = {"lossless": True} if kind.startswith("lossless") else {}
    colour = (9, 9, 9, 99) if mode == "RGBA" else (9, 9, 9)  # the encoder drops an alpha channel that hides nothing
    data = encode(Image.new(mode, (width, height), colour), "WEBP" if "WebP" in kind else kind, **options)
    assert open_picture(data, width * height).size == (width, height)
    with pytest.raises(ImageTooLargeError, match=f"{width} x {height} "):
        open_picture(data, width * height - 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def behind_header(data: bytes, end: int, times: int, extra: bytes) -> bytes:
    return data[:end] + extra * times + data[end:]


# By format: where the header ends, and the shortest part that can follow it, which no picture consists of.
PARTS = {
    "JPEG": (2, b"\xff\xe5\x00\x02"),
    "PNG": (33, chunk(b"abCd", b"")),
    "GIF": (13 + 3 * 256, b"\x21\xfe\x01a\x00"),
}


@pytest.mark.parametrize("format_", PARTS)
def test_parts_without_number_are_refused(format_: str) -> None:
    end, part = PARTS[format_]
    plain = encode(draw(1, 300, 200), format_)
    assert np.array_equal(decode(behind_header(plain, end, 1000, part), 32), decode(plain, 32))
    with pytest.raises(CorruptImageError, match="too many parts"):
        decode(behind_header(plain, end, 120_000, part), 32)


def test_parts_without_number_behind_the_pixels_are_refused() -> None:
    plain = encode(draw(1, 300, 200))
    with pytest.raises(CorruptImageError, match="too many parts"):
        decode(behind_header(plain, len(plain) - 12, 120_000, PARTS["PNG"][1]), 32)


def test_colour_profiles_that_unpack_to_much_are_refused() -> None:
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20)))
    plain = encode(draw(1))
    assert np.array_equal(decode(behind_header(plain, 33, 1, profile), 32), decode(plain, 32))
    with pytest.raises(CorruptImageError, match="more than one colour profile"):
        decode(behind_header(plain, 33, 3, profile), 32)


def scans(side: int, number: int) -> bytes:
    """A black progressive JPEG with so many scans: the DC coefficients, and again and again that all others are 0."""
    plain = encode(Image.new("L", (side, side)), "JPEG", progressive=True)
    first = plain.index(b"\xff\xda")
    rest = first + 10 + plain[first + 10 :].index(b"\xff")
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0x10) + bytes([1, *[0] * 15]) + b"\xe0"  # 0: as many blocks, and 2^14
    runs, blocks = "", (side // 8) ** 2
    while blocks:
        run = min(blocks, 32_767)
        runs += f"0{run - 16_384:014b}"
        blocks -= run
    runs += "1" * (-len(runs) % 8)
    coded = int(runs, 2).to_bytes(len(runs) // 8).replace(b"\xff", b"\xff\x00")
    empty = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + coded
    return plain[:rest] + table + empty * (number - 1) + b"\xff\xd9"


def test_jpeg_with_scans_without_number_is_refused() -> None:
    assert decode(scans(1024, 100), 32).max() == 0
    with pytest.raises(CorruptImageError, match="more than 100 scans"):
        decode(scans(1024, 101), 32)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_looks_like_scans_behind_a_jpeg_or_in_its_header_does_not_matter(progressive: bool) -> None:
    plain = encode(draw(1, 300, 200), "JPEG", progressive=progressive)
    film = b"\xff\xda\x00\x08" * 500
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(film)) + film
    assert np.array_equal(decode(plain[:2] + comment + plain[2:] + film, 32), decode(plain, 32))


def run_length_bmp(width: int, height: int, runs: bytes) -> bytes:
    """A BMP that Pillow reads but does not write: 256 shades of grey, each row from the left, the lowest row first."""
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 256)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


def test_run_length_encoded_bmp() -> None:
    grey = np.asarray(draw(8).convert("L"))
    rows = (b"".join(bytes((1, value)) for value in row) + b"\x00\x00" for row in grey[::-1].tolist())
    found = decode(run_length_bmp(32, 32, b"".join(rows) + b"\x00\x01"), 32)
    assert np.array_equal(found, np.stack([grey] * 3))


@pytest.mark.parametrize(("width", "height"), [(7000, 7000), (49_000_000, 1)])
def test_large_run_length_encoded_bmp_is_refused(width: int, height: int) -> None:
    with pytest.raises(ImageTooLargeError, match=r"of a run-length encoded BMP\. Save it as a PNG\."):
        decode(run_length_bmp(width, height, b"\x01\x01\x00\x00" * height), 32)


def test_run_length_encoded_bmp_with_runs_of_nothing_is_refused() -> None:
    with pytest.raises(CorruptImageError):
        decode(run_length_bmp(32, 32, b"\x00\x00" * 10_000 + b"\x20\x01" * 32), 32)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.9])
def test_cut_short(format_: str, share: float) -> None:
    data = encoded(format_)
    if format_ == "MPO":  # what is behind the first picture is not read
        data = data[: data.index(b"\xff\xd8", 2)]
    with pytest.raises(CorruptImageError, match=r"damaged or cut short"):
        decode(data[: int(len(data) * share)], 32)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damage that it can read over
@settings(max_examples=150)
@given(format_=st.sampled_from(FORMATS), data=st.data())
def test_damage_never_raises_anything_else(format_: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(format_))
    head = st.integers(0, 99)
    anywhere = st.integers(0, len(damaged) - 1)
    for place in data.draw(st.lists(head | anywhere, min_size=1, max_size=12)):
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(anywhere | st.just(len(damaged)))]
    try:
        found = decode(bytes(damaged), 16, max_pixels=1_000_000)
    except ImageError as error:
        assert str(error).endswith(".")
    else:
        assert found.shape == (3, 16, 16)
