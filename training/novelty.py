"""Novelty: is a picture of a kind that the network was trained on at all?"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from training import evaluate
from training.device import CPU
from training.layers import without_head

PICTURES = 1000  # training pictures whose features an artifact carries
_NEIGHBOUR = 10  # the similarity to this one counts, so that a few odd pictures in the bank make nothing familiar


class Neighbours:
    """How familiar a picture is: its similarity to the training pictures that are most like it.

    Deep nearest neighbours (Sun et al. 2022, arXiv:2204.06507): the cosine between its features, which the last layer
    reads, and those of the tenth-nearest of a thousand training pictures.

    Args:
        bank: features of training pictures, float [M, features], each of unit length.
    """

    def __init__(self, bank: Tensor) -> None:
        self.bank = bank.float()

    @classmethod
    def of(
        cls, network: nn.Module, prepare: Callable[[Tensor], Tensor], images: Tensor, device: torch.device = CPU
    ) -> "Neighbours":
        """Remember up to a thousand training pictures, uint8 [N, 3, H, W], spread evenly over those given."""
        chosen = torch.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().long()
        return cls(features(network, prepare, images[chosen], device))

    @classmethod
    def read(cls, path: Path) -> "Neighbours":
        """Read what `write` wrote."""
        return cls(load(path.read_bytes())["features"])

    def write(self, path: Path) -> None:
        """Write the features in half precision, safetensors."""
        path.write_bytes(save({"features": self.bank.half()}))

    def __call__(self, found: Tensor) -> Tensor:
        """Familiarity float [N], -1 to 1, of pictures with the unit features [N, features]."""
        nearest = (found @ self.bank.T).topk(min(_NEIGHBOUR, len(self.bank)), dim=1)
        return nearest.values[:, -1]


def features(
    network: nn.Module, prepare: Callable[[Tensor], Tensor], images: Tensor, device: torch.device = CPU
) -> Tensor:
    """What the layer `head` of a network is given, scaled to unit length: float32 [N, features], on the CPU.

    Args:
        network: in evaluation mode, on the device.
        prepare: turns uint8 pictures into the network's input.
        images: uint8 [N, 3, H, W].
    """
    with without_head(network) as trunk:
        return F.normalize(evaluate.logits(trunk, prepare, images, device), dim=1)


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Area under the ROC curve: the chance that a known picture has a higher score than an unknown one, ties half.

    Args:
        known: scores float [N] of pictures of the known classes.
        unknown: scores float [M] of others.
    """
    ordered = unknown.double().sort().values
    below = torch.searchsorted(ordered, known.double().contiguous(), side="left")
    up_to = torch.searchsorted(ordered, known.double().contiguous(), side="right")
    return float((below + up_to).double().mean() / 2 / len(unknown))
