"""A network that looks at a picture at several scales."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pyramid(nn.Module):
    """One trunk at several scales: at the picture halved `levels - 1` times first, at its full size last.

    What a trunk knows holds for things of a certain size in pixels. A trunk that was trained on small pictures so sees
    a larger one as it is used to, and its details besides. The features of all scales lie side by side before the head.

    Args:
        trunk: a network that ends in a linear layer named `head`, which is taken out of it.
        levels: number of scales.
        head: maps the features of all scales, float [N, levels x width], to logits.
    """

    def __init__(self, trunk: nn.Module, levels: int, head: nn.Linear) -> None:
        super().__init__()
        self.levels = levels
        self.trunk = trunk
        self.trunk.head = nn.Identity()
        self.head = head

    @classmethod
    def over(cls, network: nn.Module, levels: int) -> Self:
        """Wrap a network with fresh weights; the new head starts like its own."""
        single = network.get_submodule("head")
        if not isinstance(single, nn.Linear):
            raise TypeError(f"the head of {type(network).__name__} is no linear layer")
        head = nn.Linear(levels * single.in_features, single.out_features, single.bias is not None)
        with torch.no_grad():
            head.weight.copy_(single.weight.repeat(1, levels) / levels)
            if single.bias is not None:
                head.bias.copy_(single.bias)
        return cls(network, levels, head)

    def prepare(self, images: Tensor) -> None:
        """Set the trunk's first layer from normalised training pictures, float [N, 3, H, W], if it is of that kind."""
        prepare = getattr(self.trunk, "prepare", None)
        if prepare:
            prepare(images)

    def forward(self, x: Tensor) -> Tensor:
        features: list[Tensor] = []
        for level in range(self.levels):
            features.insert(0, self.trunk(x if level == 0 else F.avg_pool2d(x, 2**level)))
        return self.head(torch.cat(features, dim=1))  # type: ignore[no-any-return]
