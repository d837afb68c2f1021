"""TrivialAugment: one random operation of random strength for each picture (Müller & Hutter 2021, arXiv:2103.10158).

Whole batches at once, on their device. Operations and their ranges are the paper's wide space, the arithmetic is that
of `torchvision.transforms.TrivialAugmentWide`. Every operation takes float pictures [N, 3, H, W] in 0..255 and levels
float [N] in 0..1, or -1..1 where it has two directions.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 31  # different strengths


def trivial_augment(images: Tensor, chance: np.random.Generator) -> Tensor:
    """Change every picture by an operation of its own.

    Args:
        images: uint8 [N, 3, H, W].
        chance: draws on the host, so that a device never has to be waited for.

    Returns:
        uint8 [N, 3, H, W]; places that a picture was moved away from are black.
    """
    count = len(images)
    choices = chance.integers(len(OPERATIONS), size=count)
    levels = chance.integers(_LEVELS, size=count) / (_LEVELS - 1)
    signs = chance.choice((-1.0, 1.0), size=count)
    changed = images.float()
    for number, (operation, two_directions) in enumerate(OPERATIONS):
        chosen = np.flatnonzero(choices == number)
        if len(chosen):
            index = torch.from_numpy(chosen).to(images.device)
            level = torch.from_numpy(levels[chosen] * (signs[chosen] if two_directions else 1.0)).float()
            changed[index] = operation(changed[index], level.to(images.device))
    return changed.to(torch.uint8)


def _identity(images: Tensor, _: Tensor) -> Tensor:
    return images


def _shear_x(images: Tensor, level: Tensor) -> Tensor:
    slope = 0.99 * level
    return _warp(images, {(0, 1): slope, (0, 2): slope * images.shape[2] / 2})  # the upper edge stays


def _shear_y(images: Tensor, level: Tensor) -> Tensor:
    slope = 0.99 * level
    return _warp(images, {(1, 0): slope, (1, 2): slope * images.shape[3] / 2})  # the left edge stays


def _translate_x(images: Tensor, level: Tensor) -> Tensor:
    return _warp(images, {(0, 2): -(32 * level).trunc()})


def _translate_y(images: Tensor, level: Tensor) -> Tensor:
    return _warp(images, {(1, 2): -(32 * level).trunc()})


def _rotate(images: Tensor, level: Tensor) -> Tensor:
    angle = torch.deg2rad(135 * level)
    return _warp(images, {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()})


def _warp(images: Tensor, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Take every pixel from where a matrix [2, 3], the identity but for `entries`, sends its place.

    Places are in pixels from the middle of the picture; the nearest pixel is taken.
    """
    count, _, height, width = images.shape
    matrix = torch.eye(2, 3, dtype=images.dtype, device=images.device).repeat(count, 1, 1)
    for (row, column), values in entries.items():
        matrix[:, row, column] = values
    down = torch.arange(height, dtype=images.dtype, device=images.device) - (height - 1) / 2
    right = torch.arange(width, dtype=images.dtype, device=images.device) - (width - 1) / 2
    y, x = torch.meshgrid(down, right, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3)
    half = images.new_tensor([0.5 * width, 0.5 * height])
    grid = places.expand(count, -1, -1).bmm(matrix.transpose(1, 2) / half).view(count, height, width, 2)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _brightness(images: Tensor, level: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), level)


def _colour(images: Tensor, level: Tensor) -> Tensor:
    return _blend(images, _grey(images), level)


def _contrast(images: Tensor, level: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), level)


def _sharpness(images: Tensor, level: Tensor) -> Tensor:
    kernel = images.new_ones(3, 3)
    kernel[1, 1] = 5
    smooth = images.clone()
    weights = (kernel / kernel.sum()).expand(images.shape[1], 1, 3, 3)
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, weights, groups=images.shape[1]).round()
    return _blend(images, smooth, level)


def _blend(images: Tensor, others: Tensor, level: Tensor) -> Tensor:
    share = (1 + 0.99 * level).view(-1, 1, 1, 1)
    blended: Tensor = share * images + (1 - share) * others
    return blended.clamp(0, 255)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    grey: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return grey.floor()


def _posterize(images: Tensor, level: Tensor) -> Tensor:
    """Clear up to six of the eight bits."""
    unit = torch.exp2((6 * level).round()).view(-1, 1, 1, 1)
    return (images / unit).floor() * unit


def _solarize(images: Tensor, level: Tensor) -> Tensor:
    return torch.where(images >= 255 * (1 - level).view(-1, 1, 1, 1), 255 - images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * (255 / (high - low)), images).clamp(0, 255)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Spread the values of each channel so that their histogram is nearly flat."""
    values = images.long().flatten(2)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    of_largest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - of_largest) // 255
    spread = (counts.cumsum(2) + step // 2) // step.clamp(min=1)
    spread = F.pad(spread, (1, -1)).clamp(0, 255)  # what a value becomes depends on how many lie below it
    return torch.where(step > 0, spread.gather(2, values), values).view_as(images).float()


OPERATIONS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], bool], ...] = (
    (_identity, False),
    (_shear_x, True),
    (_shear_y, True),
    (_translate_x, True),
    (_translate_y, True),
    (_rotate, True),
    (_brightness, True),
    (_colour, True),
    (_contrast, True),
    (_sharpness, True),
    (_posterize, False),
    (_solarize, False),
    (_autocontrast, False),
    (_equalize, False),
)
