"""Small plain PNGs, read past Pillow's objects for chunks, which take longer than decoding does.

The standard is ISO/IEC 15948, https://www.w3.org/TR/png/.
"""

from zlib import crc32, decompressobj, error

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training import compiled

_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_RGB = b"\x08\x02\x00\x00\x00"  # 8 bits a sample, truecolour, deflate, the five filters, not interlaced
_SILENT = {b"gAMA": 4, b"sRGB": 1, b"pHYs": 9}  # chunks that Pillow changes no pixel for, and their lengths
_HEADER_END = 33


def read_plain(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels that Pillow's own reader gives.

    Args:
        data: of any kind.
        max_pixels: most pixels of a picture that is read here.

    Returns:
        RGB, uint8 [height, width, 3]; None for all that is not small, not plain RGB or not in order: the general
        reader says what it is.
    """
    if data[:16] != _START or data[24:29] != _RGB or crc32(data[12:29]) != _number(data, 29):
        return None
    width, height = _number(data, 16), _number(data, 20)
    stream = _stream(data)
    if stream is None or not 0 < width * height <= max_pixels:
        return None
    try:
        if not compiled.AVAILABLE:
            return np.asarray(Image.frombytes("RGB", (width, height), stream, "zip", "RGB", 0))
        pixels = np.empty((height, 3 * width), np.uint8)
        compiled.rows.unfilter(decompressobj().decompress(stream, pixels.size + height + 1), pixels)
        return pixels.reshape(height, width, 3)
    except (ValueError, error):
        return None


def _stream(data: bytes) -> bytes | None:
    """The compressed pixels; None if any chunk might change what they look like, or is damaged."""
    parts: list[bytes] = []
    place = _HEADER_END
    while (kind := data[place + 4 : place + 8]) != b"IEND":
        length = _number(data, place)
        end = place + 8 + length
        if kind == b"IDAT":
            parts.append(data[place + 8 : end])
        elif parts or _SILENT.get(kind) != length or crc32(data[place + 4 : end]) != _number(data, end):
            return None
        place = end + 4
    return parts[0] if len(parts) == 1 else b"".join(parts) or None


def _number(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 4])
