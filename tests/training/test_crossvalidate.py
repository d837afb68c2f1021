"""k-fold cross-validation."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.shapes import write_shapes
from training.crossvalidate import crossvalidate
from training.errors import InputError
from training.recipe import load
from training.sink import Epoch

TINY = ("network.arguments={width=8}", "batch_size=16", "epochs=1", "precision='float32'")


def test_every_picture_but_the_test_split_is_scored_once(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "shapes", count=20)
    seen = []

    class Sizes:
        def step(self, step: object) -> None: ...

        def epoch(self, epoch: object) -> None:
            seen.append(epoch)

    found = crossvalidate(load("resnet20", TINY), str(source), 3, models=tmp_path, device="cpu", sinks=[Sizes()])
    assert len(seen) == len(found.epochs) == 3
    assert found.pictures == 32  # a fifth of the forty is the test split
    assert min(found.accuracies) <= found.accuracy <= max(found.accuracies)
    assert not list(tmp_path.glob("*/[0-9]*"))  # no artifact


def test_a_fold_is_scored_by_the_network_that_its_run_ends_with(tmp_path: Path) -> None:
    source = tmp_path / "shapes"
    for kind in ("one", "other"):  # nothing tells these apart
        write_shapes(source / kind, count=20, kinds=["disc"], first=20 * (kind == "other"))
    seen: list[Epoch] = []

    class Epochs:
        def step(self, step: object) -> None: ...

        def epoch(self, epoch: Epoch) -> None:
            seen.append(epoch)

    stopping = "early_stopping={metric='loss', patience=9}"
    settings = (*TINY, "batch_size=8", "epochs=6", "optimizer.learning_rate=0.3", stopping)
    found = crossvalidate(load("resnet20", settings), str(source), 2, models=tmp_path, device="cpu", sinks=[Epochs()])
    of_folds = (seen[:6], seen[6:])
    assert found.epochs == tuple(min(epochs, key=lambda epoch: epoch.val_loss) for epochs in of_folds)
    assert any(epoch.epoch < 6 for epoch in found.epochs), "the last epoch is the best, or this tests nothing"


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
