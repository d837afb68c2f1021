"""Pictures to send: like photographs in that they are smooth with some grain, and the same in every run."""

import io
from functools import cache

import numpy as np
from PIL import Image


def draw(width: int, height: int, seed: int, grain: float) -> Image.Image:
    """Octaves of smooth random colours; `grain` is the standard deviation of the noise on top."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 7):
        side = 2**octave
        coarse = rng.integers(0, 256, (min(side, height), min(side, width), 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, np.float32) / side
    total = (total - total.mean()) * 1.6 + 128 + rng.normal(0, grain, (height, width, 1)).astype(np.float32)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


@cache
def small(seed: int = 0) -> bytes:
    """A PNG of 32 x 32 pixels, about 2 kB."""
    return _encoded(draw(256, 256, seed, 12).resize((32, 32), Image.Resampling.BILINEAR), "PNG")


@cache
def photo() -> bytes:
    """A JPEG of 4000 x 3000 pixels, about 2.4 MB."""
    return _encoded(draw(4000, 3000, 100, 5), "JPEG", quality=88)


@cache
def huge() -> bytes:
    """A PNG of 8000 x 8000 pixels, more than the service reads, in 8 kB."""
    return _encoded(Image.new("1", (8000, 8000)), "PNG")


def form(*files: bytes) -> tuple[bytes, str]:
    """A multipart form with files in the field `file`, and its content type."""
    mark = "bench-3f1c9a7be2d04c55"
    parts = b"".join(
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for data in files
    )
    return parts + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()
