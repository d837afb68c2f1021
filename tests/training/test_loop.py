"""The loop's own promises, beyond what whole runs show."""

import dataclasses
from pathlib import Path

import pytest
import torch

from training import data, loop, recipe, resnet
from training.checkpoint import Checkpoint
from training.data import Split
from training.errors import InputError, TrainingError
from training.loop import Epoch, Step
from training.normalisation import Normalisation

CPU = torch.device("cpu")


def split(count: int, seed: int) -> Split:
    """Pictures that are brighter on the left or on the right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :16] += 120
    images[labels == 1, :, 16:] += 120
    return Split(images, labels, tuple(map(str, range(count))), torch.arange(count))


@pytest.fixture
def parts() -> data.Partition:
    return data.Partition(split(64, 0), split(16, 1), split(16, 2), ())


class Kept:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.epochs: list[Epoch] = []

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)


def train(parts: data.Partition, name: str, *overrides: str, checkpoint: Checkpoint | None = None) -> Kept:
    chosen = recipe.load(name, ["epochs=3", "batch_size=16", "precision='float32'", *overrides])
    torch.manual_seed(0)
    network = resnet.build(chosen.network.architecture, 2, chosen.network.arguments)
    kept = Kept()
    history = loop.train(
        network,
        parts,
        chosen,
        seed=0,
        device=CPU,
        normalise=Normalisation.of(parts.train.images),
        sinks=[kept],
        checkpoint=checkpoint,
    )
    assert history == kept.epochs
    return kept


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_learns_and_reports(parts: data.Partition, name: str) -> None:
    small = {
        "fast_resnet": "{widths=[8, 16, 16]}",
        "resnet18": "{width=8}",
        "resnet20": "{width=8}",
    }[recipe.load(name).network.architecture]
    kept = train(parts, name, f"network.arguments={small}", "network.input_size=32")
    assert [epoch.epoch for epoch in kept.epochs] == [1, 2, 3]
    assert kept.epochs[-1].loss < kept.epochs[0].loss
    assert kept.steps[-1].done == 1.0
    assert kept.steps[-1].eta_seconds == 0


def test_normalisation_gives_mean_zero_and_deviation_one() -> None:
    images = split(64, 0).images
    normal = Normalisation.of(images)(images)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_bfloat16_is_close_to_float32(parts: data.Partition) -> None:
    exact = train(parts, "resnet20", "network.arguments={width=8}")
    half = train(parts, "resnet20", "network.arguments={width=8}", "precision='bfloat16'")
    assert half.epochs[0].loss == pytest.approx(exact.epochs[0].loss, rel=0.05)
    assert half.epochs[0].loss != exact.epochs[0].loss


def test_a_checkpoint_of_another_run_is_refused_and_a_damaged_one_named(parts: data.Partition, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {"seed": 0})
    train(parts, "resnet20", "network.arguments={width=8}", checkpoint=checkpoint)
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        Checkpoint(checkpoint.path, {"seed": 1}).read()
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        checkpoint.read()
    with pytest.raises(InputError, match="Leave out --resume"):
        dataclasses.replace(checkpoint, path=tmp_path / "none").read()
