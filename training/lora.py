"""Low-rank adapters: a small change to large filters (Hu et al. 2021, arXiv:2106.09685)."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 8


class LowRank(nn.Module):
    """Adds `up @ down` to a convolution's filters, seen as a matrix [outputs, inputs x height x width].

    This is the adapter for convolutions of LoCon (Yeh et al. 2023, arXiv:2309.14859): `down` is a convolution of the
    same size with `rank` outputs, `up` one of single pixels. It starts as no change, because `up` is zero, and is
    measured in units of the filters' root mean square, so that one learning rate suits filters of any scale.
    """

    def __init__(self, filters: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inner = filters.flatten(1).shape
        self.down = nn.Parameter(torch.randn(rank, inner) / rank**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = float(filters.detach().square().mean().sqrt())

    def forward(self, filters: Tensor) -> Tensor:
        return filters + self.scale * (self.up @ self.down).view(filters.shape)


def add_adapters(network: nn.Module, rank: int = RANK) -> None:
    """Give every trained convolution that is larger than it an adapter; only those and the head are trained.

    The adapters start from torch's global random state.
    """
    trained = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.weight.requires_grad]
    network.requires_grad_(False)
    network.get_submodule("head").requires_grad_(True)
    for conv in trained:
        if min(conv.weight.flatten(1).shape) > rank:
            parametrize.register_parametrization(conv, "weight", LowRank(conv.weight, rank))


def merge_adapters(network: nn.Module) -> None:
    """Add every adapter to its filters and take it out: the network is an ordinary one again, with the same output."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
