"""Pictures changed a little so that a network errs: to train on, and to measure how well it stands up to them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.data import Split
from training.distributed import ALONE, Group
from training.normalisation import Normalisation

_BATCH = 250


@dataclass(frozen=True)
class Attack:
    """Steps along the sign of the gradient from a random start (Madry et al. 2017, arXiv:1706.06083).

    One step of 1.25 times the radius is FGSM with a random start (Wong et al. 2020, arXiv:2001.03994).

    Attributes:
        radius: how far any channel of any pixel may be moved, in 255ths of the full range.
        step: how far one step moves it.
        steps: how many.
    """

    radius: float
    step: float
    steps: int

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        normalise: Normalisation,
        generator: torch.Generator,
        group: Group = ALONE,
    ) -> Tensor:
        """The changed pictures.

        The network is in evaluation mode meanwhile, so that its norms' statistics are left alone (Pang et al. 2020,
        arXiv:2010.00467, section 4.7), and then as it was.

        Args:
            images: float [N, 3, H, W], normalised.
            targets: int64 [N], or a probability of each class, float [N, classes].
            normalise: what `images` went through, so that no pixel leaves its range.
            generator: of the images' device, for the start.
            group: the processes of which each has a share of a batch; `generator` is alike in all of them.
        """
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (normalise.mean, normalise.std))
        low, high = -mean / std, (1 - mean) / std
        radius, step = self.radius / 255 / std, self.step / 255 / std
        modes = {module: module.training for module in network.modules()}
        network.eval()
        of_all = torch.rand((group.size * len(images), *images.shape[1:]), device=images.device, generator=generator)
        start = group.share(of_all) * 2 - 1
        changed = (images + radius * start).clamp(low, high)
        for _ in range(self.steps):
            changed.requires_grad_()
            loss = F.cross_entropy(network(changed).float(), targets, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, changed)
            moved = changed.detach() + step * gradient.sign()
            changed = moved.clamp(images - radius, images + radius).clamp(low, high)
        for module, training in modes.items():
            module.training = training
        return changed.detach()


def robust_accuracy(network: nn.Module, normalise: Normalisation, split: Split, attack: Attack, seed: int) -> float:
    """Share of pictures that are still classified rightly after the attack.

    Args:
        network: in evaluation mode.
        seed: of the attack's random starts.
    """
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    right = 0
    for images, labels in zip(split.images.split(_BATCH), split.labels.split(_BATCH), strict=True):
        answers = labels.to(device)
        changed = attack(network, normalise(images.to(device)), answers, normalise, generator)
        with torch.no_grad():
            right += int((network(changed).argmax(1) == answers).sum())
    return right / len(split)


def strong(radius: float) -> Attack:
    """The attack that robust accuracy is reported for: ten steps of a quarter of the radius (Rice et al. 2020)."""
    return Attack(radius, radius / 4, 10)
