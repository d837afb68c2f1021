"""The layers of a network in order: which of them stay as they are, and how far each is from the head."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # of nn.SyncBatchNorm too, which is no nn.BatchNorm2d

from training.pyramid import Pyramid
from training.recipe import Freeze


def layers(network: nn.Module) -> list[nn.Module]:
    """Parts that hold weights, from the input to the head; in a sequence of blocks each block is one."""
    if isinstance(network, Pyramid):
        return [*layers(network.trunk), network.head]
    found: list[nn.Module] = []
    for child in network.children():
        blocks = isinstance(child, nn.Sequential) and any(list(part.children()) for part in child)
        found += child.children() if blocks else [child]
    return [layer for layer in found if any(True for _ in layer.parameters())]


def head_of(network: nn.Module) -> nn.Linear:
    """The linear layer named `head` that every architecture ends in."""
    head = network.get_submodule("head")
    if not isinstance(head, nn.Linear):
        raise TypeError(f"the head of {type(network).__name__} is no linear layer")
    return head


def freeze(network: nn.Module, settings: Freeze) -> None:
    """Take the weights of the first layers out of training, unless they join in later."""
    if settings.epochs is None:
        for layer in layers(network)[: settings.layers]:
            layer.requires_grad_(False)


def drop_gradients(network: nn.Module, settings: Freeze) -> None:
    """Forget the gradients of the first layers, so that a step leaves them alone."""
    for layer in layers(network)[: settings.layers]:
        layer.zero_grad(set_to_none=True)


def train_mode(network: nn.Module, settings: Freeze) -> None:
    """Put a network into training mode, but for what is frozen: its norms keep the statistics that they have."""
    network.train()
    for layer in layers(network)[: settings.layers]:
        layer.eval()
    if settings.statistics:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@contextmanager
def without_head(network: nn.Module) -> Iterator[nn.Module]:
    """The network without its head inside the block: it gives features float [N, width], which the head would take.

    A fixed scale behind the head, as `FastResNet` has it, is part of them: the head is linear.
    """
    head = network.head
    network.head = nn.Identity()
    try:
        yield network
    finally:
        network.head = head
