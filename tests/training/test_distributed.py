"""Two processes train the network that one would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.several import RUNS
from training import artifact, run
from training.distributed import Group

RECIPE = ("--recipe", "resnet20", "--set", "network.arguments={width=8}", "--set", "batch_size=16", "--device", "cpu")
SHORT = ("--set", "epochs=3", "--set", "validation=20", "--set", "optimizer.learning_rate=0.05")
# float32 sums in another order, over 18 steps.
TOLERANCE = 1e-3
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(shapes: Path, models: Path, *arguments: str) -> list[str]:
    return ["-m", "training", "train", *RECIPE, *SHORT, "--data", str(shapes), "--models", str(models), *arguments]


def run_to_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun sets it, with a warning, where it is not
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_give_the_losses_of_one(shapes: Path, tmp_path: Path) -> None:
    settings = ("--set", "augment.mixup=0.2", "--set", "average.decay=0.9")
    run_to_end(*command(shapes, tmp_path, "--name", "one", *settings))
    done = run_to_end(*TORCHRUN, *command(shapes, tmp_path, "--name", "two", *settings))
    assert done.stdout.count("two version 1") == 1  # only the first process speaks
    one, two = (
        [json.loads(line) for line in (run.runs_folder(tmp_path, name) / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(two) == 3
    for alone, together in zip(one, two, strict=True):
        for figure in ("loss", "val_loss"):
            assert together[figure] == pytest.approx(alone[figure], rel=TOLERANCE)
    assert artifact.versions(tmp_path, "two") == [1]
    artifact.verify(artifact.folder(tmp_path, "two", 1))
    weights, expected = (load_file(artifact.folder(tmp_path, name, 1) / artifact.WEIGHTS) for name in ("two", "one"))
    torch.testing.assert_close(weights, expected, rtol=0.01, atol=TOLERANCE)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the runs of `several` give one process, and each of two."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    run_to_end("-m", "tests.training.several", str(alone))
    run_to_end(*TORCHRUN, "-m", "tests.training.several", str(together))
    return [json.loads(file.read_text()) for file in (alone / "0.json", together / "0.json", together / "1.json")]


@pytest.mark.parametrize("name", RUNS)
def test_parts_of_a_batch_and_attacks_are_those_of_one_process(name: str, outcomes: list[dict[str, Any]]) -> None:
    alone, *together = (torch.tensor(outcome["losses"][name]) for outcome in outcomes)
    for losses in together:
        torch.testing.assert_close(losses, alone, rtol=1e-4, atol=0)  # shallow networks repeat better


def test_each_process_drops_other_values(outcomes: list[dict[str, Any]]) -> None:
    alone, first, second = (outcome["masks"] for outcome in outcomes)
    assert first == alone
    assert not any(mask in first for mask in second)


def test_shares_make_up_the_batch() -> None:
    batch = torch.arange(12)
    assert torch.cat([Group(rank, 3).share(batch) for rank in range(3)]).tolist() == batch.tolist()


def test_a_process_alone_changes_nothing() -> None:
    alone, values, network = Group(), torch.randn(3), torch.nn.BatchNorm2d(3)
    assert alone.wrap(network) is network
    assert torch.equal(alone.mean(values), values)
    alone.wait()
