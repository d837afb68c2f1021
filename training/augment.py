"""Augmentation of whole batches on the device that trains."""

import torch
from torch import Tensor
from torch.nn import functional as F


def alternating_flip(images: Tensor, first: Tensor, epoch: int) -> Tensor:
    """Mirror a random half in the first epoch and the other half in the next, and so on in turn.

    Every two epochs then show each picture both ways, where random flips repeat one way half of the time
    (Jordan 2024, arXiv:2404.00498, section 3.6).

    Args:
        images: [N, C, H, W].
        first: bool [N], the pictures that epoch 0 mirrors.
        epoch: number of the epoch, from 0.
    """
    mirrored = first if epoch % 2 == 0 else ~first
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift every picture by up to `padding` pixels each way; the border is its mirror image.

    Args:
        images: [N, C, H, W].
        padding: pixels, less than H and W.
        generator: of the images' device.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    offsets = torch.randint(2 * padding + 1, (2, count, 1), device=images.device, generator=generator)
    rows = (offsets[0] + torch.arange(height, device=images.device)).view(count, 1, height, 1)
    columns = (offsets[1] + torch.arange(width, device=images.device)).view(count, 1, 1, width)
    tall = padded.gather(2, rows.expand(-1, channels, -1, padded.shape[3]))
    return tall.gather(3, columns.expand(-1, channels, height, -1))


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Set a random square of every picture to zero, the mean after normalisation (arXiv:1708.04552).

    Args:
        images: [N, C, H, W].
        size: side of the square in pixels; parts of it may lie outside the picture.
        generator: of the images' device.
    """
    count, _, height, width = images.shape
    device = images.device
    centre = torch.rand((2, count, 1, 1, 1), device=device, generator=generator)
    down = torch.arange(height, device=device).view(1, 1, -1, 1) - (centre[0] * height).floor()
    right = torch.arange(width, device=device).view(1, 1, 1, -1) - (centre[1] * width).floor()
    half = size / 2
    inside = (down >= -half) & (down < half) & (right >= -half) & (right < half)
    return images.masked_fill(inside, 0)
