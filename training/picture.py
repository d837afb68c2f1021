"""One picture: encoded bytes to pixels. Training and serving share this code, so they cannot disagree."""

import io
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from training import jpeg, png
from training.errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError

# JPEG includes MPO, which is a JPEG with a second picture behind it, as many phones write it; the first one is read.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"})
MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {"JPEG": "image/jpeg", "PNG": "image/png", "WebP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
)
_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (b"\xff\xd8\xff", _PNG, b"GIF87a", b"GIF89a")  # of JPEG, PNG and GIF
DEFAULT_MAX_PIXELS = 50_000_000
_SMALL = 64 * 64  # pixels
_DRAFT = 8  # least sides of a scaled JPEG, in sides of the network's input

# What a decoder takes its time for, however few bytes and pixels there are: a picture that has more of it is refused.
_MOST_READS = 100_000  # of chunks, segments and blocks, most of which take three: some 30,000, a tenth of a second
_MOST_SCANS = 100  # of a JPEG; each goes over all pixels, and encoders write 20 at most
_MOST_PROFILES = 2  # of a PNG; each unpacks to a megabyte. One may be there, another may be pixels that look like it
_MOST_RUN_LENGTH_PIXELS = 2_100_000  # of a BMP; Pillow's decoder of these is written in Python: 1920 x 1080 take 1 s

# Pillow's own guard has a fixed limit and warns before it raises; `open_picture` applies the limit it is given.
Image.MAX_IMAGE_PIXELS = None

# What turns a picture upright, by its EXIF orientation; 1 is upright already.
_TURNS: Mapping[int, Image.Transpose] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)

_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_FRAME, _END, _SCAN = 0xC0, 0xD9, 0xDA
_BARE = range(0xD0, 0xD9)  # markers that no length follows, as none follows those below `_FRAME`

Pixels = NDArray[np.uint8]


class _Source(io.BytesIO):
    """Encoded bytes that can be read from `_MOST_READS` times."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it consists of too many parts")
        return super().read(size)


def open_picture(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Read a picture's header; no pixel is decoded yet.

    Raises:
        UnsupportedImageError: the bytes are in none of `FORMATS`.
        ImageTooLargeError: width times height is above `max_pixels`.
        CorruptImageError: the header is damaged, or so long that it costs more time than pixels do.
    """
    if not data:
        raise UnsupportedImageError("The file is empty. Send a JPEG, PNG, WebP, GIF or BMP picture.")
    _check_size(*_webp_size(data), max_pixels)
    if data.startswith(_PNG) and data.count(b"iCCP") > _MOST_PROFILES:
        raise _corrupt("it has more than one colour profile")
    try:
        picture = Image.open(_Source(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
            raise _corrupt("its header is incomplete") from error
        raise UnsupportedImageError(
            "The file is not a picture that can be read. Send a JPEG, PNG, WebP, GIF or BMP picture."
        ) from None
    except Exception as error:
        raise _corrupt(error) from error
    _check_size(*picture.size, max_pixels)
    if picture.tile and picture.tile[0].codec_name == "bmp_rle":
        _check_size(*picture.size, _MOST_RUN_LENGTH_PIXELS, "a run-length encoded BMP")
        # Its decoder reads two bytes at a time: `_Source` would count them, for longer than reading them takes.
        longest = 2 * (picture.width + 1) * picture.height  # each run is of one pixel, and lines have an end
        picture.fp = io.BytesIO(data[: picture.tile[0].offset + longest])
    return picture


def open_scaled(data: bytes, size: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """`open_picture`, with a large JPEG set to be decoded at 1/2, 1/4 or 1/8 of its width and height.

    Each side stays at least `_DRAFT` times as long as the network's input, so that the antialiased resizing after it
    still averages over several pixels. The scaling happens in the decoder's inverse cosine transform, which costs a
    fraction of decoding all pixels.
    """
    picture = open_picture(data, max_pixels)
    try:
        picture.draft(None, (_DRAFT * size, _DRAFT * size))
    except Exception as error:
        raise _corrupt(error) from error
    return picture


def decode(data: bytes, size: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels:
    """Decode a picture into the pixels that a network sees: `decode_plain`, or `open_scaled` and `render`."""
    plain = decode_plain(data, size, max_pixels)
    return render(open_scaled(data, size, max_pixels), size) if plain is None else plain


def decode_plain(data: bytes, size: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels | None:
    """What `render` gives for a small plain PNG; None for all others."""
    plain = png.read_plain(data, min(_SMALL, max_pixels))
    if plain is None:
        return None
    if plain.shape[:2] != (size, size):
        plain = np.asarray(Image.fromarray(plain).resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(plain.transpose(2, 0, 1))


def render(picture: Image.Image, size: int) -> Pixels:
    """Decode an opened picture.

    The EXIF orientation is applied, transparency is laid over white, 16-bit channels are scaled to 8 bits, an
    animation gives its first frame, and the whole picture is resized (antialiased, bilinear) to a square
    without cropping.

    Args:
        picture: of `open_scaled`.
        size: side of the square, in pixels.

    Returns:
        RGB, uint8, shape [3, size, size], contiguous.

    Raises:
        CorruptImageError: the data is damaged or ends early.
    """
    try:
        rgb = to_rgb(_upright(_load(picture), picture))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others on damaged files
        raise _corrupt(error) from error
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.frombuffer(rgb.tobytes(), np.uint8).reshape(size, size, 3)  # Pillow's own conversion takes longer
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode that Pillow decodes into 8-bit RGB, the way a viewer on a white page shows it."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64)
        return Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        page = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(page, clear).convert("RGB")
    return picture.convert("RGB")


def _load(picture: Image.Image) -> Image.Image:
    """An opened picture with its pixels."""
    if isinstance(picture, JpegImageFile) and isinstance(picture.fp, io.BytesIO):
        data = picture.fp.getvalue()
        eighth = jpeg.read_eighth(data) if picture.decoderconfig == (8, 0) else None
        if eighth is not None:
            return eighth
        _check_scans(data)
    picture.load()
    return picture


def _check_scans(data: bytes) -> None:
    """Raise ValueError if a JPEG has too many scans; its markers are found as libjpeg finds them (ITU-T T.81, annex B).

    Behind the end there may be anything, such as the film that belongs to a photo, with bytes that look like scans.
    """
    if data.count(b"\xff\xda") <= _MOST_SCANS:
        return
    scans, place = 0, 2
    while marker := _MARKER.search(data, place):
        kind, place = marker[0][1], marker.end()
        if kind == _END:
            return
        scans += kind == _SCAN
        if scans > _MOST_SCANS:
            raise ValueError(f"it has more than {_MOST_SCANS} scans")
        if kind >= _FRAME and kind not in _BARE:
            place += int.from_bytes(data[place : place + 2])


def _upright(pixels: Image.Image, opened: Image.Image) -> Image.Image:
    """Pixels turned as the opened picture's EXIF orientation says."""
    try:
        turn = _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP header, 0 and 0 in any other; WebP container specification, RFC 9649.

    Pillow allocates a WebP's whole canvas when it opens the file: up to 2 GB for a file of 34 bytes.
    """
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else b""
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        bits = int.from_bytes(data[26:30], "little")
        return bits & 0x3FFF, bits >> 16 & 0x3FFF
    return 0, 0


def _check_size(width: int, height: int, max_pixels: int, kind: str = "") -> None:
    if width * height > max_pixels:
        limit = f"at most {max_pixels:,} are read{kind and f' of {kind}'}"
        way = "Save it as a PNG." if kind else "Scale it down."
        raise ImageTooLargeError(f"The picture has {width} x {height} pixels; {limit}. {way}")


def _corrupt(reason: object) -> CorruptImageError:
    return CorruptImageError(f"The picture is damaged or cut short ({reason}). Send it again, or save it anew.")
