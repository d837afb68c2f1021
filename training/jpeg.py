"""Large JPEGs at 1/8 of their width and height: pixel for pixel what Pillow makes of them, in half of the time.

Only those are read here that cameras and phones write: baseline, three components, one scan. The standard is ITU-T
T.81.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training import compiled

_START = b"\xff\xd8"
_BLOCK = 8  # samples on each side
_FRAMES = (b"\xff\xc0", b"\xff\xc1")  # sequential, with Huffman codes
_THREE_OF_8_BITS = b"\x08\x03"
_TABLES, _SCAN, _STEPS, _INTERVAL, _ADOBE = b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"\xff\xdd", b"\xff\xee"
_SILENT = {_ADOBE, b"\xff\xfe", *(bytes((0xFF, kind)) for kind in range(0xE0, 0xF0))}  # applications' own, and comments
_END = b"\xff\xd9"
_LUMA = (0x11, 0x21, 0x22)  # blocks across and down in a unit
_CHROMA = [0x11, 0x11]
_WHOLE = b"\x00\x3f\x00"  # of a scan: coefficients from 0 to 63, with all of their bits


def read_eighth(data: bytes) -> Image.Image | None:
    """The picture at 1/8 of its width and height, rounded up, in RGB.

    Args:
        data: of a file of any kind.

    Returns:
        None for all that is not an ordinary JPEG in good order: the general reader says what it is.
    """
    if not compiled.AVAILABLE or data[:2] != _START:
        return None
    header = _Header()
    try:
        for marker, content, end in _segments(data):
            if marker == _SCAN:
                return header.decode(data, content, end)
            header.read(marker, content)
    except (IndexError, KeyError, ValueError):  # numbers that lead nowhere
        return None
    return None


@dataclass
class _Header:
    """What the segments before the scan say."""

    size: tuple[int, int] = (0, 0)
    components: dict[int, tuple[int, int]] = field(default_factory=dict)  # sampling, and which steps, by name
    steps: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    tables: dict[int, "compiled.scan.Huffman"] = field(default_factory=dict)  # those of AC coefficients from 16 on
    interval: int = 0

    def read(self, marker: bytes, content: bytes) -> None:
        """Take in a segment.

        Raises:
            IndexError, ValueError: a picture with it is not one that is read here.
        """
        if marker == _STEPS:
            self._read_steps(content)
        elif marker == _TABLES:
            self._read_tables(content)
        elif marker == _INTERVAL:
            self.interval = int.from_bytes(content)
        elif marker in _FRAMES and not self.components and content[:6:5] == _THREE_OF_8_BITS:
            self.size = int.from_bytes(content[3:5]), int.from_bytes(content[1:3])
            self.components = {content[at]: (content[at + 1], content[at + 2]) for at in (6, 9, 12)}
        elif marker not in _SILENT or (marker == _ADOBE and content[:5] == b"Adobe" and content[11] != 1):
            raise ValueError

    def decode(self, data: bytes, content: bytes, start: int) -> Image.Image | None:
        """Decode the scan with this header, which begins at `start`."""
        names = bytes(self.components)
        luma, *chroma = (sampling for sampling, _ in self.components.values())
        if content[0] != len(names) or content[1:7:2] != names or names == b"RGB" or content[7:] != _WHOLE:
            return None
        if luma not in _LUMA or chroma != _CHROMA:
            return None
        (width, height), across, down = self.size, luma >> 4, luma & 15
        rows, columns = -(-height // (_BLOCK * down)) * down, -(-width // (_BLOCK * across)) * across
        pixels = np.empty((rows, columns, 3), np.uint8)
        tables = [(self.tables[kinds >> 4], self.tables[16 + (kinds & 15)]) for kinds in content[2:7:2]]
        steps = np.stack([self.steps[number] for _, number in self.components.values()])
        end = compiled.scan.means(data, start, tables, steps, across, down, self.interval, pixels)
        if data[end : end + 2] != _END:
            return None
        compiled.scan.to_rgb(pixels)
        return Image.fromarray(pixels[: -(-height // _BLOCK), : -(-width // _BLOCK)])

    def _read_steps(self, content: bytes) -> None:
        while content:
            kind, end = (">u2", 129) if content[0] >> 4 else ("u1", 65)
            self.steps[content[0] & 15] = np.frombuffer(content[1:end], kind, 64).astype(np.int32)
            content = content[end:]

    def _read_tables(self, content: bytes) -> None:
        while content:
            end = 17 + sum(content[1:17])
            kind, counts, symbols = content[0], content[1:17], content[17:end]
            if kind & 0xEF > 3 or (kind < 16 and max(symbols) > 15):
                raise ValueError
            self.tables[kind] = compiled.scan.Huffman(counts, symbols)
            content = content[end:]


def _segments(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Marker, content and end of each segment."""
    place = 2
    while (marker := data[place : place + 2])[:1] == b"\xff":
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        yield marker, data[place + 4 : end], end
        place = end
