"""Optimisers and learning-rate schedules, and which parameters get which."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.layers import layers
from training.recipe import Optimizer, Schedule

# The share of a run in which muon trains the bias of a whitening layer, from the author's reference.
_WHITEN_UNTIL = 3 / 8
_LOW, _END = 1 / 25, 1 / 250_000  # shares of the full rate that one-cycle begins and ends with, as in torch


class FilterMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for convolution filters, seen as matrices [outputs, inputs x height x width].

    The momentum is orthogonalised by a Newton-Schulz iteration before it is applied, and each filter bank is
    rescaled to a norm of sqrt(outputs) before every step, which takes the place of weight decay.
    `torch.optim.Muon` takes matrices only and has no such rescaling; on this kind of network it is what
    allows the large rate.
    """

    # Coefficients of the quintic iteration, from the author's reference.
    A, B, C = 3.4445, -4.7750, 2.0315

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, iterations: int = 3) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  torch passes one
        """Apply one step of Nesterov momentum, orthogonalised."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for filters in group["params"]:
                if filters.grad is None:
                    continue
                state = self.state[filters]
                if not state:
                    state["momentum"] = torch.zeros_like(filters)
                state["momentum"].mul_(group["momentum"]).add_(filters.grad)
                ahead = filters.grad.add(state["momentum"], alpha=group["momentum"])
                alike.setdefault(filters.shape, []).append((filters, ahead.flatten(1)))
            for banks in alike.values():
                updates = self._orthogonal(torch.stack([ahead for _, ahead in banks]), group["iterations"])
                for (filters, _), update in zip(banks, updates, strict=True):
                    filters.mul_(len(filters) ** 0.5 / filters.norm())
                    filters.add_(update.view_as(filters), alpha=-group["lr"])

    def _orthogonal(self, matrices: Tensor, iterations: int) -> Tensor:
        """Matrices [N, rows, columns] at once: they are small, and a GPU takes for one product no less than for N."""
        x = matrices.bfloat16()
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        tall = x.shape[1] > x.shape[2]
        if tall:
            x = x.mT
        for _ in range(iterations):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=self.B, alpha=self.C), x, beta=self.A)
        orthogonal: Tensor = x.mT if tall else x
        return orthogonal.to(matrices.dtype)


def make_optimizers(network: nn.Module, settings: Optimizer) -> list[torch.optim.Optimizer]:
    """The optimisers of one run; each group remembers its full rate as `initial_lr`.

    A group with `until` goes through the schedule in that share of the run.

    But for muon, norms and biases get no weight decay (He et al. 2018, arXiv:1812.01187, section 3.1).
    """
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    matrices = [p for _, p in trained if p.ndim > 1]
    vectors = [p for _, p in trained if p.ndim <= 1]
    optimizers: list[torch.optim.Optimizer]
    if settings.name == "muon":
        filters = [p for _, p in trained if p.ndim == 4]
        head = [p for _, p in trained if p.ndim in {2, 3}]
        whiten = [p for name, p in trained if name == "whiten.bias"]
        shifts = [p for name, p in trained if p.ndim <= 1 and name != "whiten.bias"]
        # SGD multiplies its decay by the rate. Divided by it here, the decay is the same for the head and the biases,
        # as the method's author has it. It goes through the momentum: in the long run a step at the full rate takes
        # away the share `weight_decay` / (1 - momentum).
        groups = [
            {"params": parameters, "lr": lr, "weight_decay": settings.weight_decay / lr, "until": until}
            for parameters, lr, until in (
                (head, settings.head_learning_rate, 1.0),
                (shifts, settings.bias_learning_rate, 1.0),
                (whiten, settings.bias_learning_rate, _WHITEN_UNTIL),
            )
            if parameters
        ]
        optimizers = [
            torch.optim.SGD(groups, momentum=0.85, nesterov=True),
            FilterMuon(filters, settings.learning_rate, settings.momentum),
        ]
    else:
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        if settings.name == "sgd":
            sgd = torch.optim.SGD(
                groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0
            )
            optimizers = [sgd]
        else:
            kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
            optimizers = [kind(groups, lr=settings.learning_rate)]
    for optimizer in optimizers:
        if settings.relative or settings.first_layer_share < 1:
            optimizer.param_groups = _spread(optimizer.param_groups, network, settings)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _spread(groups: list[dict[str, Any]], network: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """A group for each parameter, with its own share of the rate."""
    order = layers(network)
    depths: dict[Tensor, float] = {
        parameter: depth / max(1, len(order) - 1)
        for depth, layer in enumerate(reversed(order))
        for parameter in layer.parameters()
    }

    def share(parameter: Tensor) -> float:
        scale = float(parameter.detach().square().mean().sqrt()) if settings.relative else 1.0
        return math.pow(settings.first_layer_share, depths[parameter]) * (scale or 1.0)

    return [
        {**group, "params": [parameter], "lr": group["lr"] * share(parameter)}
        for group in groups
        for parameter in group["params"]
    ]


def set_rates(optimizers: Iterable[torch.optim.Optimizer], schedule: Schedule, done: float) -> None:
    """Set the rate of every group for a step that begins when the share `done` (0 to 1) of all steps is behind.

    From its `until` on a group's rate is 0, whatever the schedule ends at.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            until = group.get("until", 1.0)
            group["lr"] = group["initial_lr"] * rate(schedule, done / until) if done < until else 0.0


def retire(optimizers: Iterable[torch.optim.Optimizer], done: float) -> None:
    """Ask for no more gradients of the parameters whose rate has run out when the share `done` of all steps is behind.

    Those of a first layer's bias alone cost about 6 % of a step on a CPU: the gradient of the whole map behind it.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if done >= group.get("until", 1.0):
                for parameter in group["params"]:
                    parameter.requires_grad_(False)


def rate(schedule: Schedule, done: float) -> float:
    """Share of the full learning rate after the share `done` (0 to 1) of all steps."""
    if done < schedule.warmup:
        share = done / schedule.warmup
        return _between(_LOW, 1, share) if schedule.shape == "one-cycle" else share
    left = (1 - done) / (1 - schedule.warmup)
    shapes: dict[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "linear": lambda: left,
        "cosine": lambda: _between(0, 1, left),
        "one-cycle": lambda: _between(_END, 1, left),
        "step": lambda: schedule.factor ** sum(done >= milestone for milestone in schedule.milestones),
    }
    return shapes[schedule.shape]()


def _between(low: float, high: float, share: float) -> float:
    """From `low` at 0 to `high` at 1 by half a cosine, level at both ends."""
    return low + (high - low) * (1 - math.cos(math.pi * share)) / 2
