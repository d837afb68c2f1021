"""Logistic regression on frozen features."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.balance import picture_weights
from training.errors import InputError
from training.head import FOLDS, Examples, Scale, cross_validate, features, fit
from training.layers import head_of
from training.normalisation import Normalisation
from training.resnet import build

CPU = torch.device("cpu")


def examples(count: int = 120, classes: int = 3, seed: int = 0) -> Examples:
    """Overlapping clouds of points, the first class twice as often as each other one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.zeros(count // 4, dtype=torch.long), torch.arange(count - count // 4) % classes])
    centres = torch.randn(classes, 8, generator=generator)
    points = centres[labels] + torch.randn(count, 8, generator=generator)
    return Examples(points.double(), None, labels, torch.arange(count), balanced=True)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_fit_is_where_the_gradient_vanishes(strength: float) -> None:
    given = examples()
    start = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
    matrix = fit(given, start, strength).requires_grad_()
    losses = F.cross_entropy(given.plain @ matrix.T, given.labels, reduction="none")
    loss = (picture_weights(given.labels) * losses).mean() + strength * (matrix - start).square().sum()
    loss.backward()
    assert matrix.grad is not None
    assert float(matrix.grad.norm()) < 1e-4
    assert float(matrix.grad.norm()) < 1e-3 * float((matrix.detach() - start).norm())


def test_a_strong_pull_leaves_the_head_where_it_started() -> None:
    start = torch.ones(3, 8).double()
    torch.testing.assert_close(fit(examples(), start, 1e6), start, atol=1e-3, rtol=0)


def test_fixed_classes_keep_their_weights_and_others_learn_beside_them() -> None:
    given = examples()
    start = torch.zeros(3, 8).double()
    start[:2] = fit(dataclasses.replace(given, labels=given.labels.clamp(max=1)), start[:2], 1e-2)
    matrix = fit(given, start, 1e-3, fixed=2)
    assert torch.equal(matrix[:2], start[:2])
    recall = (given.plain @ matrix.T).argmax(1)[given.labels == 2] == 2
    assert float(recall.double().mean()) > 0.5


def test_cross_validation_scores_pictures_that_were_not_fitted_on() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, 60, generator=generator).double()
    given = Examples(noise, None, torch.arange(100) % 2, torch.arange(100), balanced=False)
    choice = cross_validate(given, torch.zeros(2, 60).double(), 0, seed=0)
    assert len(choice.folds) == FOLDS
    assert choice.count == 100
    assert choice.figures()["accuracy"] == pytest.approx(0.5, abs=0.15)
    fitted = given.plain @ fit(given, torch.zeros(2, 60).double(), 1e-4).T
    assert float((fitted.argmax(1) == given.labels).double().mean()) > 0.9


def test_pictures_that_are_all_alike_cannot_be_judged_by_one_another() -> None:
    given = dataclasses.replace(examples(), clusters=torch.zeros(120, dtype=torch.long))
    with pytest.raises(InputError, match=r"120 training pictures nearly repeat one another.*Add different pictures"):
        cross_validate(given, torch.zeros(3, 8).double(), 0, seed=0)


def test_mirrored_pictures_are_left_out_where_they_contradict_the_labels() -> None:
    given = examples()
    agreeing = dataclasses.replace(given, mirrored=given.plain)
    contradicting = dataclasses.replace(given, mirrored=-given.plain)
    start = torch.zeros(3, 8).double()
    assert cross_validate(agreeing, start, 0, seed=0).mirrored
    assert not cross_validate(contradicting, start, 0, seed=0).mirrored


@pytest.mark.parametrize("architecture", ["fast_resnet", "resnet20"])
def test_a_written_head_gives_the_answers_of_its_matrix(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture, 3, {}).eval()
    images = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8)
    normalise = Normalisation.of(images)
    told: list[int] = []
    found = features(network, normalise, images, CPU, told.append)
    assert sum(told) == 70
    head = head_of(network)
    scale = Scale(found, head.bias is not None)
    columns = scale.features(found)
    assert float(columns[:, : found.shape[1]].square().mean()) == pytest.approx(1)
    torch.testing.assert_close(
        columns @ scale.matrix(head).T, network(normalise(images)).double(), rtol=1e-3, atol=1e-4
    )
    matrix = torch.randn(3, columns.shape[1]).double()
    scale.write(matrix, head)
    torch.testing.assert_close(network(normalise(images)).double(), columns @ matrix.T, rtol=1e-3, atol=1e-3)
    assert isinstance(network.head, nn.Linear)
    assert math.isfinite(float(found.sum()))
