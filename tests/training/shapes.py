"""A small real data set, drawn: discs, crosses and rings in many sizes, places and colours."""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw


def draw(kind: str, seed: int, size: int = 32) -> Image.Image:
    """One picture of a disc, a cross or a ring on a coloured ground."""
    rng = random.Random(f"{kind}{seed}")
    ground = tuple(rng.randrange(120) for _ in range(3))
    colour = tuple(rng.randrange(140, 256) for _ in range(3))
    picture = Image.new("RGB", (size, size), ground)
    pen = ImageDraw.Draw(picture)
    half = rng.randrange(size // 5, size // 3)
    x, y = (rng.randrange(half, size - half) for _ in range(2))
    if kind == "disc":
        pen.ellipse((x - half, y - half, x + half, y + half), fill=colour)
    elif kind == "ring":
        pen.ellipse((x - half, y - half, x + half, y + half), outline=colour, width=2)
    else:
        pen.line((x - half, y - half, x + half, y + half), fill=colour, width=3)
        pen.line((x - half, y + half, x + half, y - half), fill=colour, width=3)
    return picture


def write_shapes(
    folder: Path, count: int = 60, kinds: Sequence[str] = ("disc", "cross"), size: int = 32, first: int = 0
) -> Path:
    """Write `count` pictures of each class below `folder`, of side `size`; another `first` gives other pictures."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for number in range(first, first + count):
            draw(kind, number, size).save(folder / kind / f"{number}.png")
    return folder
