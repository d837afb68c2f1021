"""The loop's own promises, beyond what whole runs show."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training import data, evaluate, loop, recipe, resnet
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


SMALL = ("network.arguments={width=8}", "optimizer.learning_rate=0.05")


def test_early_stopping_ends_the_run_and_keeps_the_best_weights(parts: data.Partition) -> None:
    # Nothing can be learned from a rate this small: the first epoch stays the best one, or nearly so.
    stopping = "early_stopping={metric='accuracy', patience=2}"
    kept = train(parts, "resnet20", *SMALL, "epochs=12", stopping, "optimizer.learning_rate=1e-9")
    assert len(kept.epochs) < 12


def test_the_best_epoch_is_what_is_left_in_the_network(parts: data.Partition) -> None:
    chosen = recipe.load("resnet20", ["epochs=6", "batch_size=16", "early_stopping={metric='loss'}", *SMALL])
    torch.manual_seed(0)
    network = resnet.build("resnet20", 2, {"width": 8})
    normalise = Normalisation.of(parts.train.images)
    history = loop.train(network, parts, chosen, seed=0, device=CPU, normalise=normalise)
    best = min(epoch.val_loss for epoch in history)
    precision = loop.autocast_dtype(chosen, CPU)
    assert evaluate.score(network, normalise, parts.validation, CPU, precision).loss == pytest.approx(best, rel=1e-4)


def test_a_low_resolution_phase_is_validated_at_its_size_and_not_compared(parts: data.Partition) -> None:
    low = "low_resolution={size=16, fraction=0.5}"
    stopping = "early_stopping={metric='loss', patience=1}"
    kept = train(parts, "resnet20", *SMALL, "epochs=4", low, stopping)
    assert len(kept.epochs) >= 3  # a patience of 1 begins with the first epoch at full size
    seen: list[int] = []

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.shape[-1])
            return self.head(images.mean((2, 3)))  # type: ignore[no-any-return]

    chosen = recipe.load("resnet20", ["epochs=4", "batch_size=32", low])
    loop.train(Sized(), parts, chosen, seed=0, device=CPU, normalise=Normalisation.of(parts.train.images))
    assert seen == [16, 16, 16] * 2 + [32, 32, 32] * 2  # two steps and the validation of each epoch


def test_balanced_class_weights_make_a_rare_class_count_as_much() -> None:
    rare = split(64, 0)
    rare.labels[:] = (torch.arange(64) % 16 == 0).long()
    noise = dataclasses.replace(rare, images=torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8))
    parts = data.Partition(noise, noise, noise, ())
    shares = {}
    for weights in ("none", "balanced"):
        chosen = recipe.load(
            "resnet20", ["epochs=12", "batch_size=64", f"class_weights='{weights}'", "freeze.layers=10"]
        )
        network = resnet.build("resnet20", 2, {"width": 8})
        normalise = Normalisation.of(noise.images)
        loop.train(network, parts, chosen, seed=0, device=CPU, normalise=normalise)
        out = evaluate.logits(network.eval(), normalise, noise.images, CPU)
        shares[weights] = float(out.softmax(1)[:, 1].mean())
    assert shares["none"] < 0.25 < shares["balanced"]


def test_a_penalty_is_added_to_the_loss_of_every_step(parts: data.Partition) -> None:
    chosen = recipe.load("resnet20", ["epochs=1", "batch_size=16", "precision='float32'", *SMALL])
    losses = []
    for extra in (0.0, 5.0):
        torch.manual_seed(0)
        network = resnet.build("resnet20", 2, {"width": 8})
        (epoch,) = loop.train(
            network,
            parts,
            chosen,
            seed=0,
            device=CPU,
            normalise=Normalisation.of(parts.train.images),
            penalty=lambda _, logits, extra=extra: logits.sum() * 0 + extra,  # type: ignore[misc]
        )
        losses.append(epoch.loss)
    assert losses[1] - losses[0] == pytest.approx(5, rel=1e-4)


def test_earlier_epochs_are_told_first_and_leave_the_first_layer_as_it_is(parts: data.Partition) -> None:
    chosen = recipe.load("cpu-hour", ["epochs=2", "batch_size=16", "network.arguments={widths=[8, 16, 16]}"])
    network = resnet.build("fast_resnet", 2, chosen.network.arguments)
    before = network.state_dict()["whiten.weight"].clone()
    kept = Kept()
    earlier = Epoch(1, 2, 1.0, 0.5, 1.0, 0.5, 0.5, 3.0)
    history = loop.train(
        network,
        parts,
        chosen,
        seed=0,
        device=CPU,
        normalise=Normalisation.of(parts.train.images),
        sinks=[kept],
        earlier=[earlier],
    )
    assert history == kept.epochs
    assert history[0] == earlier
    assert [epoch.epoch for epoch in history] == [1, 2]
    assert history[1].seconds > 3
    assert torch.equal(network.state_dict()["whiten.weight"], before)
