"""Pixels to the numbers that a network takes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels scaled to 0..1, in RGB order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, images: Tensor) -> "Normalisation":
        """Measure pictures, uint8 [N, 3, H, W]."""
        pixels = images.transpose(0, 1).flatten(1)
        mean = torch.stack([channel.double().mean() for channel in pixels]) / 255
        std = torch.stack([channel.double().std() for channel in pixels]) / 255
        red, green, blue = mean.tolist()
        spread = std.clamp(min=1e-3).tolist()
        return cls((red, green, blue), (spread[0], spread[1], spread[2]))

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures uint8 [N, 3, H, W] to float32, the layout unchanged."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return (images.float() / 255 - mean) / std
