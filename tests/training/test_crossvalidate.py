"""k-fold cross-validation."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.shapes import write_shapes
from training.crossvalidate import _stopping, crossvalidate
from training.data import Split
from training.errors import InputError
from training.recipe import load
from training.sink import Epoch

TINY = ("network.arguments={width=8}", "batch_size=16", "epochs=1", "precision='float32'")
STOPPING = "early_stopping={metric='loss', patience=9}"


class Epochs:
    def __init__(self) -> None:
        self.seen: list[Epoch] = []

    def step(self, step: object) -> None: ...

    def epoch(self, epoch: Epoch) -> None:
        self.seen.append(epoch)


def test_every_picture_but_the_test_split_is_scored_once(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "shapes", count=20)
    kept = Epochs()
    found = crossvalidate(load("resnet20", TINY), str(source), 3, models=tmp_path, device="cpu", sinks=[kept])
    assert len(kept.seen) == len(found.epochs) == 3
    assert found.pictures == 32  # a fifth of the forty is the test split
    assert min(found.accuracies) <= found.accuracy <= max(found.accuracies)
    assert not list(tmp_path.glob("*/[0-9]*"))  # no artifact


def test_a_run_that_may_stop_early_does_not_choose_its_epoch_by_the_fold(tmp_path: Path) -> None:
    source = tmp_path / "shapes"
    for kind in ("one", "other"):  # nothing tells these apart
        write_shapes(source / kind, count=20, kinds=["disc"], first=20 * (kind == "other"))
    kept = Epochs()
    settings = (*TINY, "batch_size=8", "epochs=6", "optimizer.learning_rate=0.3", STOPPING)
    found = crossvalidate(load("resnet20", settings), str(source), 2, models=tmp_path, device="cpu", sinks=[kept])
    for number, scored in enumerate(found.epochs):
        chosen = min(kept.seen[6 * number : 6 * number + 6], key=lambda epoch: epoch.val_loss)
        assert (scored.epoch, scored.loss, scored.seconds) == (chosen.epoch, chosen.loss, chosen.seconds)
        assert scored.val_loss != chosen.val_loss, "it was chosen by the pictures that it is scored on"
    assert any(epoch.epoch < 6 for epoch in found.epochs), "the last epoch is the best, or this tests nothing"


def test_without_early_stopping_a_fold_is_scored_after_each_epoch_and_the_last_figure_counts(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "shapes", count=20)
    kept = Epochs()
    settings = (*TINY, "epochs=2")
    found = crossvalidate(load("resnet20", settings), str(source), 2, models=tmp_path, device="cpu", sinks=[kept])
    assert found.epochs == (kept.seen[1], kept.seen[3])


def test_repeats_stay_on_one_side_of_what_a_run_is_stopped_by(tmp_path: Path) -> None:
    labels, clusters = torch.arange(40) % 2, torch.arange(40) // 4 * 4
    pool = Split(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), labels, tuple(map(str, range(40))), clusters)
    others = clusters >= 12
    stops = _stopping(load("resnet20", (*TINY, STOPPING)), pool, others, seed=0)
    assert stops is not None
    assert 0 < stops.sum() <= others.sum() / 5
    assert not (stops & ~others).any()
    assert not set(clusters[stops].tolist()) & set(clusters[others & ~stops].tolist())
    assert _stopping(load("resnet20", TINY), pool, others, seed=0) is None


def test_nothing_to_stop_by_is_said_before_any_training(tmp_path: Path) -> None:
    source = tmp_path / "shapes"
    for split in ("train", "val", "test"):
        write_shapes(source / split, count=1)
    for kind in ("disc", "cross"):
        shutil.copy(source / "train" / kind / "0.png", source / "train" / kind / "again.png")
    kept = Epochs()
    chosen = load("resnet20", (*TINY, STOPPING))
    with pytest.raises(InputError, match="No validation split for early stopping can be cut from the 3 pictures"):
        crossvalidate(chosen, str(source), 2, models=tmp_path, device="cpu", sinks=[kept])
    assert not kept.seen


@pytest.mark.parametrize("count", [0, 1, 30])
def test_folds_that_cannot_be_cut(tmp_path: Path, count: int) -> None:
    source = write_shapes(tmp_path / "shapes", count=20)
    with pytest.raises(InputError, match="folds cannot be cut"):
        crossvalidate(load("resnet20", TINY), str(source), count, models=tmp_path, device="cpu")


def test_too_few_different_pictures_are_refused_before_any_training(tmp_path: Path) -> None:
    source = tmp_path / "shapes"
    for first, split in enumerate(("train", "val", "test")):
        write_shapes(source / split, count=2, first=10 * first)
    for kind in ("disc", "cross"):
        for number in range(8):
            shutil.copy(source / "train" / kind / "0.png", source / "train" / kind / f"again{number}.png")
    seen: list[object] = []

    class Steps:
        def step(self, step: object) -> None:
            seen.append(step)

        def epoch(self, epoch: object) -> None: ...

    with pytest.raises(InputError, match="12 folds cannot be cut: only"):
        crossvalidate(load("resnet20", TINY), str(source), 12, models=tmp_path, device="cpu", sinks=[Steps()])
    assert not seen


def test_the_command_prints_json(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "shapes", count=20)
    settings = [part for override in TINY for part in ("--set", override)]
    command = [sys.executable, "-m", "training", "crossvalidate", "--recipe", "resnet20", *settings, "--folds", "2"]
    done = subprocess.run(
        [*command, "--data", source, "--device", "cpu", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert len(figures["epochs"]) == 2
    assert figures["accuracy"] == pytest.approx(sum(e["val_accuracy"] for e in figures["epochs"]) / 2)
