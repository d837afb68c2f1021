"""Common corruptions: how accuracy holds when pictures are noisy, blurred, pale or badly compressed.

Seven of the fifteen corruptions of Hendrycks & Dietterich (2019, arXiv:1903.12261), at the five strengths of their
CIFAR-10-C, which are made for pictures of 32 pixels: larger pictures suffer less from the same blur.
"""

import io
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training import evaluate

STRENGTHS = (1, 2, 3, 4, 5)
_PICTURES = 2000  # that each corruption is scored on: enough for a share to within 2 points

_GAUSSIAN_NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation
_SHOT_NOISE = (500, 250, 100, 75, 50)  # photons at full brightness
_IMPULSE_NOISE = (0.01, 0.02, 0.03, 0.05, 0.07)  # share of values that become black or white
_DEFOCUS_BLUR = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))  # radius of the disc, sigma of its edge
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor
_JPEG_QUALITY = (80, 65, 58, 50, 40)
_PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)  # share of the side that is left

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]


def corrupt(images: Tensor, name: str, strength: int, seed: int = 0) -> Tensor:
    """Corrupt pictures; the same seed gives the same noise.

    Args:
        images: uint8 [N, 3, H, W] on the CPU.
        name: one of `CORRUPTIONS`.
        strength: 1 to 5.

    Returns:
        uint8 [N, 3, H, W].
    """
    return CORRUPTIONS[name](images, strength - 1, torch.Generator().manual_seed(seed))


def accuracies(script: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> dict[str, object]:
    """Score an exported file under every corruption, on up to 2,000 pictures spread evenly over those given.

    Args:
        script: takes uint8 [N, 3, H, W], gives logits [N, classes].
        images: uint8 [N, 3, H, W].
        labels: int64 [N].

    Returns:
        `count` of the pictures, `clean` accuracy on them, `accuracy` by corruption, a list from the least strength to
        the greatest, and the `mean` over all corruptions and strengths.
    """
    chosen = torch.linspace(0, len(images) - 1, min(_PICTURES, len(images))).round().long()
    images, labels = images[chosen], labels[chosen]

    def share(pictures: Tensor) -> float:
        out = evaluate.answers(script, pictures)
        return evaluate.accuracy(out, labels)

    found = {name: [share(corrupt(images, name, strength)) for strength in STRENGTHS] for name in CORRUPTIONS}
    every = [value for row in found.values() for value in row]
    return {"count": len(labels), "clean": share(images), "accuracy": found, "mean": math.fsum(every) / len(every)}


def _gaussian_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    return _pixels(images / 255 + _GAUSSIAN_NOISE[level] * torch.randn(images.shape, generator=generator))


def _shot_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    photons = _SHOT_NOISE[level]
    return _pixels(torch.poisson(images / 255 * photons, generator) / photons)


def _impulse_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    draw = torch.rand(images.shape, generator=generator) / _IMPULSE_NOISE[level]
    return images.masked_fill(draw < 0.5, 0).masked_fill((draw >= 0.5) & (draw < 1), 255)


def _defocus_blur(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    radius, sigma = _DEFOCUS_BLUR[level]
    steps = torch.arange(-2, 3)
    disc = (steps.view(-1, 1) ** 2 + steps**2 <= radius**2).float()
    tap = torch.exp(-(torch.arange(-1, 2) ** 2) / (2 * sigma**2))
    edge = tap.view(-1, 1) * tap
    kernel = F.conv2d((disc / disc.sum())[None, None], (edge / edge.sum())[None, None], padding=1)
    padded = F.pad(images / 255, (2, 2, 2, 2), mode="reflect")
    return _pixels(F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3))


def _contrast(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    mean = (images / 255).mean((2, 3), keepdim=True)
    return _pixels((images / 255 - mean) * _CONTRAST[level] + mean)


def _jpeg(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    def compress(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=_JPEG_QUALITY[level])
        return Image.open(file)

    return _each(images, compress)


def _pixelate(images: Tensor, level: int, _: torch.Generator) -> Tensor:
    def coarsen(picture: Image.Image) -> Image.Image:
        small = (int(picture.width * _PIXELATE[level]), int(picture.height * _PIXELATE[level]))
        return picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)

    return _each(images, coarsen)


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pictures = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy())
    changed = np.stack([np.asarray(change(picture)) for picture in pictures])
    return torch.from_numpy(changed).permute(0, 3, 1, 2)


def _pixels(values: Tensor) -> Tensor:
    """Values where 1 is full brightness, as uint8."""
    return (values.clamp(0, 1) * 255).to(torch.uint8)


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "gaussian_noise": _gaussian_noise,
        "shot_noise": _shot_noise,
        "impulse_noise": _impulse_noise,
        "defocus_blur": _defocus_blur,
        "contrast": _contrast,
        "pixelate": _pixelate,
        "jpeg_compression": _jpeg,
    }
)
