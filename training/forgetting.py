"""What a fine-tune forgets of its base: the penalty that holds it back, and the figures that tell."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import evaluate
from training.device import CPU
from training.evaluate import accuracy_interval
from training.replay import Memory

_SOFTNESS = 2.0  # temperature of the answers that are compared, as in the paper


def distillation(teacher: nn.Module, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Penalty on answers that move away from the base's (Learning without Forgetting, Li & Hoiem, arXiv:1606.09282).

    Args:
        teacher: the base, in evaluation mode, on the device of the batches.
        classes: how many classes the base tells apart; they come first in the logits of both.

    Returns:
        A function of a batch's input and its logits float [N, classes or more]: their mean Kullback-Leibler divergence
        from the teacher's at a temperature of 2, in nats, times 4: the temperature's square keeps the gradients' size.
    """

    def penalty(images: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            before = F.log_softmax(teacher(images).float() / _SOFTNESS, dim=1)
        now = F.log_softmax(logits[:, :classes] / _SOFTNESS, dim=1)
        return _SOFTNESS**2 * F.kl_div(now, before, reduction="batchmean", log_target=True)

    return penalty


def measure(
    before: Callable[[Tensor], Tensor],
    after: Callable[[Tensor], Tensor],
    normalise: Callable[[Tensor], Tensor],
    memory: Memory,
    names: Sequence[str],
) -> dict[str, Any]:
    """Accuracy on pictures of the base's classes that neither was trained on, by the base and by what became of it.

    Args:
        before: the base, on the CPU; gives logits float [N, base's classes].
        after: the fine-tuned network, on the CPU; an answer that the base does not know counts as wrong.
        names: the base's classes in order.

    Returns:
        Figures ready for JSON; shares are 0 to 1, `lost_points` is per cent.
    """
    labels = memory.test.labels
    right = [
        evaluate.logits(network, normalise, memory.test.images, CPU).argmax(1) == labels for network in (before, after)
    ]
    shares = [float(row.double().mean()) for row in right]
    return {
        "pictures": memory.origin,
        "count": len(labels),
        "before": shares[0],
        "after": shares[1],
        "after_interval_95": list(accuracy_interval(shares[1], len(labels))),
        "lost_points": 100 * (shares[0] - shares[1]),
        "per_class": {
            name: dict(
                zip(("before", "after"), (float(row[labels == label].double().mean()) for row in right), strict=True)
            )
            for label, name in enumerate(names)
            if (labels == label).any()
        },
    }
