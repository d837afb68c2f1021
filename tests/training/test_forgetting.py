"""The penalty against forgetting, and the figures of it."""

import pytest
import torch
from torch import nn

from training.data import Split
from training.forgetting import distillation, measure
from training.replay import Memory


def test_the_penalty_is_zero_for_the_base_s_own_answers_and_grows_with_the_distance() -> None:
    torch.manual_seed(0)
    teacher = nn.Linear(5, 3)
    batch = torch.randn(4, 5)
    penalty = distillation(teacher, 3)
    own = teacher(batch).detach()
    extra = torch.full((4, 1), 7.0)
    assert float(penalty(batch, torch.cat([own, extra], dim=1))) == pytest.approx(0, abs=1e-6)
    direction = torch.tensor([1.0, -1.0, 0.0])
    near, far = (float(penalty(batch, own + step * direction)) for step in (0.5, 2.0))
    assert 0 < near < far


def test_the_penalty_pulls_answers_back() -> None:
    torch.manual_seed(0)
    teacher = nn.Linear(5, 3)
    batch = torch.randn(4, 5)
    logits = torch.zeros(4, 4, requires_grad=True)
    distillation(teacher, 3)(batch, logits).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 3] == 0).all()
    wanted = teacher(batch).detach()
    assert float((logits.grad[:, :3] * (wanted - wanted.mean(1, keepdim=True))).sum()) < 0


def test_measure_counts_what_each_knows() -> None:
    pictures = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    pictures[:, 0, 0, 0] = torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    split = Split(pictures, torch.tensor([0, 0, 1, 1]), ("a", "b", "c", "d"), torch.arange(4))

    def before(batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(batch[:, 0, 0, 0].long(), 2).float()

    def after(batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(2 * batch[:, 0, 0, 0].long(), 3).float()  # a new class takes the second one's

    found = measure(before, after, lambda batch: batch, Memory(split, split, "a test"), ("cat", "dog"))
    assert (found["before"], found["after"], found["lost_points"], found["count"]) == (1.0, 0.5, 50.0, 4)
    assert found["per_class"] == {"cat": {"before": 1.0, "after": 1.0}, "dog": {"before": 1.0, "after": 0.0}}
