"""Augmentation of whole batches on the device that trains."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.recipe import Augment


def augmented(images: Tensor, mirrored: Tensor, settings: Augment, epoch: int, generator: torch.Generator) -> Tensor:
    """What a recipe does to each picture on its own.

    Args:
        images: float [N, C, H, W], normalised.
        mirrored: bool [N], the pictures that epoch 0 mirrors.
        epoch: number of the epoch, from 0.
        generator: of the images' device.
    """
    if settings.flip == "alternating":
        images = alternating_flip(images, mirrored, epoch)
    if settings.crop_padding:
        images = random_crop(images, settings.crop_padding, generator)
    if settings.cutout:
        images = cutout(images, settings.cutout, generator)
    return images


def mixed(
    images: Tensor,
    labels: Tensor,
    classes: int,
    settings: Augment,
    chance: np.random.Generator,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The pictures and their targets, mixed by one of the methods that a recipe allows.

    Args:
        images: float [N, C, H, W].
        labels: int64 [N].
        chance: for the choice of the method and how much is mixed, decided on the host.
        generator: of the images' device, for what is mixed with what.

    Returns:
        Pictures, and a probability of each class, float [N, classes]; both as they came if nothing is mixed.
    """
    methods = [(mix, alpha) for mix, alpha in ((mixup, settings.mixup), (cutmix, settings.cutmix)) if alpha]
    if not methods:
        return images, labels
    mix, alpha = methods[chance.integers(len(methods))]
    return mix(images, F.one_hot(labels, classes).float(), chance.beta(alpha, alpha), generator)


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


def mixup(images: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend every picture and its target with those of another (Zhang et al. 2017, arXiv:1710.09412).

    Args:
        images: [N, C, H, W].
        targets: probability of each class, float [N, classes].
        share: how much of each stays, 0 to 1.
        generator: of the images' device.
    """
    partner = torch.randperm(len(images), device=images.device, generator=generator)
    return images.lerp(images[partner], 1 - share), targets.lerp(targets[partner], 1 - share)


def cutmix(images: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put a box of another picture into every one, the same place for all (Yun et al. 2019, arXiv:1905.04899).

    Args:
        images: [N, C, H, W].
        targets: probability of each class, float [N, classes]; they are mixed by the area that the box really has.
        share: how much of each stays if the box lies inside, 0 to 1.
        generator: of the images' device.
    """
    height, width = images.shape[2:]
    device = images.device
    partner = torch.randperm(len(images), device=device, generator=generator)
    centre = torch.rand(2, device=device, generator=generator)
    half = math.sqrt(1 - share) / 2
    rows = ((torch.arange(height, device=device) + 0.5) / height - centre[0]).abs() < half
    columns = ((torch.arange(width, device=device) + 0.5) / width - centre[1]).abs() < half
    box = rows.view(-1, 1) & columns
    return torch.where(box, images[partner], images), targets.lerp(targets[partner], box.float().mean())
