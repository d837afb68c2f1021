"""Attacks stay within their bounds, and fool networks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.runs import split
from training.adversarial import Attack, robust_accuracy, strong
from training.normalisation import Normalisation
from training.resnet import build

NORMALISE = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet20", 2, {"width": 8, "zero_init": False, "block_dropout": 0.5})


def pixels(images: Tensor) -> Tensor:
    """Normalised pictures in 255ths of the full range."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (NORMALISE.mean, NORMALISE.std))
    return 255 * (images * std + mean)


@pytest.mark.parametrize("attack", [Attack(8, 10, 1), Attack(8, 2, 7), Attack(0.5, 4, 3)])
def test_no_pixel_moves_too_far_or_out_of_range(attack: Attack) -> None:
    images = NORMALISE(split(8, 0).images)
    images[0] = NORMALISE(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0]
    images[1] = NORMALISE(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))[0]
    changed = attack(network(), images, torch.arange(8) % 2, NORMALISE, torch.Generator().manual_seed(0))
    assert (pixels(changed) - pixels(images)).abs().max() <= attack.radius + 1e-3
    assert pixels(changed).min() >= -1e-3
    assert pixels(changed).max() <= 255 + 1e-3
    assert not changed.requires_grad


def test_the_loss_rises_more_than_by_chance() -> None:
    model = network().eval()
    images, labels = NORMALISE(split(32, 0).images), torch.arange(32) % 2

    def loss(attack: Attack) -> float:
        changed = attack(model, images, labels, NORMALISE, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float(F.cross_entropy(model(changed), labels))

    by_chance, one_step, many_steps = (loss(Attack(8, step, steps)) for step, steps in ((0.0, 1), (10, 1), (2, 10)))
    assert by_chance < one_step
    assert by_chance < many_steps


def test_the_network_is_left_as_it_was() -> None:
    model = network().train()
    model.stem.eval()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    images = NORMALISE(split(4, 0).images)
    strong(8)(model, images, torch.arange(4) % 2, NORMALISE, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


class Brightness(nn.Module):
    """Answers by the mean of all pixels; its answers are known for every attack."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        value = self.scale * x.mean((1, 2, 3))
        return torch.stack([-value, value], 1)


def test_robust_accuracy_counts_what_stands() -> None:
    normalise = Normalisation((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    some = split(4, 0)
    levels = torch.tensor([20, 125, 130, 235], dtype=torch.uint8).view(-1, 1, 1, 1)
    given = type(some)(levels.expand(4, 3, 32, 32).clone(), torch.tensor([0, 0, 1, 1]), some.names, some.clusters)
    assert robust_accuracy(Brightness().eval(), normalise, given, strong(8), seed=0) == 0.5
    assert robust_accuracy(Brightness().eval(), normalise, given, strong(1), seed=0) == 1.0
