"""Pixels to the numbers that a network takes."""

from dataclasses import dataclass
from functools import lru_cache

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
        values = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(3)])
        pixels = counts[0].sum()
        mean = counts.double() @ values / pixels
        std = ((counts * (values - mean[:, None]).square()).sum(1) / (pixels - 1)).sqrt()
        red, green, blue = mean.tolist()
        spread = std.clamp(min=1e-3).tolist()
        return cls((red, green, blue), (spread[0], spread[1], spread[2]))

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures uint8 [N, 3, H, W] to float32, the layout unchanged."""
        mean, std = _on(images.device, self.mean), _on(images.device, self.std)
        return (images.float() / 255 - mean) / std


@lru_cache(maxsize=8)  # copying them to a GPU for every batch would make the host wait for it
def _on(device: torch.device, values: tuple[float, float, float]) -> Tensor:
    with torch.inference_mode(mode=False):  # what is made in inference mode is not for training
        return torch.tensor(values, device=device).view(1, 3, 1, 1)
