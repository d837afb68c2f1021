"""Pictures for tests, and what a model says of them when it is asked directly."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.serving.engine import Probabilities
from tests.encoding import encode
from training import artifact, export, picture


def draw(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A picture of a few coloured blocks; every seed gives another one."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def png(seed: int) -> bytes:
    """A small PNG; every seed gives another one."""
    return encode(draw(seed))


@cache
def huge_png() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in a few dozen kilobytes."""
    return encode(Image.new("1", (20_000, 20_000)))


def direct(folder: Path, *data: bytes) -> Probabilities:
    """Probabilities float32 [N, classes] that a version's file gives to encoded pictures, without the service."""
    script, size = _loaded(folder)
    pixels = np.stack([picture.decode(entry, size) for entry in data])
    with torch.inference_mode():
        probabilities: Probabilities = script(torch.from_numpy(pixels)).softmax(1).numpy()
    return probabilities


@cache
def _loaded(folder: Path) -> tuple[torch.jit.ScriptModule, int]:
    script = export.load_script(folder / artifact.SCRIPT, torch.device("cpu"))
    return script, artifact.read_manifest(folder).input_size
