"""Novelty scores on pictures and numbers whose answer is plain."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.shapes import draw
from training import resnet
from training.normalisation import Normalisation
from training.novelty import Neighbours, auroc, features

NORMALISE = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def shapes(seeds: range) -> Tensor:
    """Pictures of discs, uint8 [N, 3, 32, 32]."""
    return torch.stack([torch.from_numpy(np.array(draw("disc", seed))).permute(2, 0, 1) for seed in seeds])


def test_auroc_counts_pairs_and_ties_by_half() -> None:
    assert auroc(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])) == 1
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) == 0
    assert auroc(torch.tensor([2.0, 2.0]), torch.tensor([2.0, 1.0])) == pytest.approx(0.75)
    known, unknown = torch.randn(50), torch.randn(40)
    pairs = (known.view(-1, 1) > unknown).double().mean()
    assert auroc(known, unknown) == pytest.approx(float(pairs))


@pytest.mark.parametrize("architecture", ["fast_resnet", "resnet20", "wide_resnet16_8"])
def test_features_are_what_the_head_reads(architecture: str) -> None:
    torch.manual_seed(0)
    network = resnet.build(architecture, 3, {}).eval()
    found = features(network, NORMALISE, shapes(range(3)))
    assert found.shape == (3, network.get_submodule("head").in_features)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_noise_is_less_familiar_than_more_of_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet.build("resnet20", 2, {"width": 8}).eval()
    Neighbours.of(network, NORMALISE, shapes(range(200))).write(tmp_path / "bank")
    neighbours = Neighbours.read(tmp_path / "bank")
    known = neighbours(features(network, NORMALISE, shapes(range(200, 260))))
    noise = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    assert auroc(known, neighbours(features(network, NORMALISE, noise))) > 0.95


def test_a_bank_smaller_than_the_neighbourhood_still_answers() -> None:
    bank = torch.eye(3)
    assert Neighbours(bank)(bank).tolist() == [0, 0, 0]
