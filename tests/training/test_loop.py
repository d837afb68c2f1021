"""The loop's own promises, beyond what whole runs show."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.runs import CPU, Kept, partition, split, train
from training import data, evaluate, loop, recipe, resnet
from training.checkpoint import Checkpoint
from training.distillation import Teacher
from training.distributed import Group
from training.errors import InputError, TrainingError
from training.normalisation import Normalisation
from training.sink import Epoch

SMALL = "network.arguments={width=8}"


@pytest.fixture
def parts() -> data.Partition:
    return partition()


def losses(kept: Kept) -> list[float]:
    return [epoch.loss for epoch in kept.epochs]


def test_a_run_learns_and_reports(parts: data.Partition) -> None:
    kept = train(parts, "resnet20", SMALL)
    assert [epoch.epoch for epoch in kept.epochs] == [1, 2, 3]
    assert kept.epochs[-1].loss < kept.epochs[0].loss
    assert kept.epochs[-1].val_robust_accuracy is None
    assert kept.steps[-1].done == 1.0
    assert kept.steps[-1].eta_seconds == 0


def test_normalisation_gives_mean_zero_and_deviation_one() -> None:
    images = split(64, 0).images
    normal = Normalisation.of(images)(images)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_bfloat16_is_close_to_float32(parts: data.Partition) -> None:
    exact = train(parts, "resnet20", SMALL)
    half = train(parts, "resnet20", SMALL, "precision='bfloat16'")
    assert half.epochs[0].loss == pytest.approx(exact.epochs[0].loss, rel=0.05)
    assert half.epochs[0].loss != exact.epochs[0].loss


def test_a_checkpoint_of_another_run_is_refused_and_a_damaged_one_named(parts: data.Partition, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {"seed": 0})
    train(parts, "resnet20", SMALL, checkpoint=checkpoint)
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        Checkpoint(checkpoint.path, {"seed": 1}).read()
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        checkpoint.read()
    with pytest.raises(InputError, match="Leave out --resume"):
        dataclasses.replace(checkpoint, path=tmp_path / "none").read()


class PixelNet(nn.Module):
    """A network without batch norm, so that a batch in parts is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def pixel_run(parts: data.Partition, *overrides: str) -> nn.Module:
    chosen = recipe.load("resnet20", ["epochs=2", "batch_size=16", "precision='float32'", *overrides])
    torch.manual_seed(0)
    network = PixelNet()
    normalise = Normalisation.of(parts.train.images)
    loop.train(network, parts, chosen, seed=0, device=CPU, normalise=normalise)
    return network


def test_a_batch_in_parts_gives_the_same_step(parts: data.Partition) -> None:
    whole, in_parts = pixel_run(parts), pixel_run(parts, "accumulate=4")
    torch.testing.assert_close(in_parts.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_step(parts: data.Partition) -> None:
    plain = ("optimizer.momentum=0", "optimizer.weight_decay=0", "schedule={shape='constant'}", "epochs=1")
    torch.manual_seed(0)
    start = PixelNet().state_dict()
    clipped = pixel_run(parts, *plain, "optimizer.learning_rate=1.0", "optimizer.clip_norm=1e-3").state_dict()
    moved = math.sqrt(sum(float((clipped[name] - start[name]).square().sum()) for name in start))
    assert 0 < moved <= 4 * 1e-3 * 1.001  # four steps of a rate of 1


@pytest.mark.parametrize(
    "settings",
    [
        ("augment.mixup=0.4",),
        ("augment.cutmix=1.0",),
        ("augment.mixup=0.4", "augment.cutmix=1.0", "augment.policy='trivial'", "label_smoothing=0.1"),
    ],
)
def test_mixing_changes_the_losses_and_repeats_by_seed(parts: data.Partition, settings: tuple[str, ...]) -> None:
    mixed = train(parts, "resnet20", SMALL, *settings)
    assert losses(mixed) == losses(train(parts, "resnet20", SMALL, *settings))
    assert losses(mixed) != losses(train(parts, "resnet20", SMALL))


def test_an_average_is_what_is_validated_and_kept(parts: data.Partition) -> None:
    plain = pixel_run(parts)
    averaged = pixel_run(parts, "average.decay=0.5")
    assert not torch.equal(averaged.head.weight, plain.head.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_with_every_method_is_the_uninterrupted_one(
    parts: data.Partition, tmp_path: Path, after: int
) -> None:
    settings = (
        "network.arguments={width=8, block_dropout=0.1, dropout=0.1}",
        "average.decay=0.9",
        "augment.policy='trivial'",
        "augment.mixup=0.2",
        "augment.cutmix=1.0",
        "optimizer.clip_norm=1.0",
        "accumulate=2",
        "schedule={shape='one-cycle', warmup=0.3}",
    )
    whole = train(parts, "resnet20", *settings)

    class Stopper(Kept):
        def epoch(self, epoch: Epoch) -> None:
            if epoch.epoch == after:
                raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {})
    with pytest.raises(KeyboardInterrupt):
        train(parts, "resnet20", *settings, checkpoint=checkpoint, kept=Stopper())
    resumed = train(parts, "resnet20", *settings, checkpoint=dataclasses.replace(checkpoint, resume=True))

    def timeless(kept: Kept) -> list[Epoch]:
        return [dataclasses.replace(epoch, seconds=0) for epoch in kept.epochs]

    assert timeless(resumed) == timeless(whole)


def test_frozen_layers_join_in_after_their_epochs(parts: data.Partition) -> None:
    learned = []
    for epochs in (1, 2):
        chosen = recipe.load("resnet20", [SMALL, f"epochs={epochs}", "batch_size=16", "freeze={layers=2, epochs=1}"])
        torch.manual_seed(0)
        network = resnet.build("resnet20", 2, {"width": 8})
        before = {name: value.clone() for name, value in network.state_dict().items()}
        loop.train(network, parts, chosen, seed=0, device=CPU, normalise=Normalisation.of(parts.train.images))
        after = network.state_dict()
        learned.append({name for name in before if not torch.equal(before[name], after[name])})
    assert "stem.0.weight" not in learned[0]
    assert "head.weight" in learned[0]
    assert {"stem.0.weight", "stages.0.conv1.weight", "head.weight"} <= learned[1]


def test_adversarial_training_reports_robust_accuracy(parts: data.Partition) -> None:
    kept = train(parts, "resnet20", SMALL, "adversarial={radius=2, step=2.5}", "precision='bfloat16'")
    assert all(epoch.val_robust_accuracy is not None for epoch in kept.epochs)
    assert all((epoch.val_robust_accuracy or 0) <= 1 for epoch in kept.epochs)


def test_a_teacher_changes_what_is_learned(parts: data.Partition) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([9.0, -9.0]).expand(len(x), 2)

    normalise = Normalisation.of(parts.train.images)
    wrong = Teacher(Sure(), normalise, 32, normalise, weight=100.0)
    kept = train(parts, "resnet20", SMALL, "optimizer.learning_rate=1e-3", penalty=wrong)
    assert kept.epochs[-1].accuracy == pytest.approx(0.5, abs=0.1)  # it says the same of every picture


def test_a_batch_that_cannot_be_divided_is_refused(parts: data.Partition) -> None:
    with pytest.raises(InputError, match=r"batch_size 16 is not a multiple of 3 processes x 1 parts"):
        train(parts, "resnet20", SMALL, group=Group(0, 3))


def test_a_batch_of_more_pictures_than_there_are_is_refused(parts: data.Partition) -> None:
    with pytest.raises(InputError, match="batch_size 128 is more than the 64 training pictures"):
        train(parts, "resnet20", SMALL, "batch_size=128")


@pytest.mark.parametrize("average", [(), ("average.decay=0.5",)])
def test_a_last_step_that_diverges_is_named_and_the_checkpoint_before_it_kept(
    parts: data.Partition, tmp_path: Path, average: tuple[str, ...]
) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, clock=lambda: 0.0)  # due after every epoch
    kept = Kept()
    steps = ("epochs=2", "batch_size=64", "schedule={shape='constant', warmup=0.5}")  # the first has a rate of 0
    with pytest.raises(TrainingError, match=r"no longer finite in epoch 2. Lower optimizer.learning_rate"):
        train(
            parts, "resnet20", SMALL, *steps, *average, "optimizer.learning_rate=1e30", kept=kept, checkpoint=checkpoint
        )
    assert [epoch.epoch for epoch in kept.epochs] == [1]
    state = checkpoint.read()
    assert len(state["history"]) == 1
    assert all(torch.isfinite(value).all() for value in state["network"].values())


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_rate_that_torch_refuses_is_named_as_one_that_diverges(parts: data.Partition, name: str) -> None:
    with pytest.raises(TrainingError, match=r"Lower optimizer.learning_rate"):
        train(parts, "resnet20", SMALL, f"optimizer={{name='{name}', learning_rate=1e39}}")


GENTLE = ("network.arguments={width=8}", "optimizer.learning_rate=0.05")


def test_early_stopping_ends_the_run_and_keeps_the_best_weights(parts: data.Partition) -> None:
    # Nothing can be learned from a rate this small: the first epoch stays the best one, or nearly so.
    stopping = "early_stopping={metric='accuracy', patience=2}"
    kept = train(parts, "resnet20", *GENTLE, "epochs=12", stopping, "optimizer.learning_rate=1e-9")
    assert len(kept.epochs) < 12


def test_the_best_epoch_is_what_is_left_in_the_network(parts: data.Partition) -> None:
    chosen = recipe.load("resnet20", ["epochs=6", "batch_size=16", "early_stopping={metric='loss'}", *GENTLE])
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
    kept = train(parts, "resnet20", *GENTLE, "epochs=4", low, stopping)
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


def test_pictures_grow_in_steps_of_four_pixels() -> None:
    low = recipe.LowResolution(size=20, fraction=0.75, grow_to=28)
    assert [low.at(done / 8) for done in range(8)] == [20, 20, 24, 24, 28, 28, None, None]
    assert recipe.LowResolution(size=24, fraction=0.5).at(0.49) == 24


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


class ConstantNet(nn.Module):
    """A network that answers the same of every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.new_ones(len(x), 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mix", ["augment.mixup=1.0", "augment.cutmix=1.0", "label_smoothing=0.2"])
def test_balanced_classes_count_as_much_in_mixed_pictures(mix: str) -> None:
    rare = split(64, 0)
    rare.labels[:] = (torch.arange(64) % 16 == 0).long()
    parts = data.Partition(rare, rare, rare, ())
    settings = ("epochs=40", "batch_size=64", "precision='float32'", "class_weights='balanced'")
    chosen = recipe.load("resnet20", [*settings, mix, "optimizer={learning_rate=0.5, weight_decay=0}"])
    network = ConstantNet()
    normalise = Normalisation.of(rare.images)
    loop.train(network, parts, chosen, seed=0, device=CPU, normalise=normalise)
    assert float(network(torch.zeros(1, 1)).detach().softmax(1)[0, 1]) == pytest.approx(0.5, abs=0.01)


def test_a_penalty_is_added_to_the_loss_of_every_step(parts: data.Partition) -> None:
    chosen = recipe.load("resnet20", ["epochs=1", "batch_size=16", "precision='float32'", *GENTLE])
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
    chosen = recipe.load("cpu", ["epochs=2", "batch_size=16", "network.arguments={widths=[8, 16, 16]}"])
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
