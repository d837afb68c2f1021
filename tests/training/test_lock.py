"""The lock on a run's folder, between real runs of the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.shapes import write_shapes
from training import artifact, lock, run
from training.errors import InputError

TINY = ("--recipe", "resnet20", "--set", "network.arguments={width=8}", "--set", "batch_size=16", "--device", "cpu")


def command(data: Path, models: Path, *arguments: str) -> list[str]:
    given = ("--set", "validation=20", "--data", str(data), "--models", str(models), "--name", "shapes")
    return [sys.executable, "-m", "training", "train", *TINY, *given, *arguments]


def test_a_second_run_of_a_name_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    data, models = write_shapes(tmp_path / "shapes"), tmp_path / "models"
    folder = run.runs_folder(models, "shapes")
    with subprocess.Popen(
        command(data, models, "--set", "epochs=1000"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as first:
        try:
            assert first.stderr
            while "training 1000 epochs" not in (said := first.stderr.readline()):
                assert said, "the first run ended"
            second = subprocess.run(
                command(data, models, "--resume"), capture_output=True, text=True, check=False, timeout=240
            )
        finally:
            first.kill()
    assert second.returncode == 2
    assert f"Another run of shapes is at work: process {first.pid} on " in second.stderr
    assert "(python -m training train " in second.stderr
    assert "Traceback" not in second.stderr
    assert (folder / "log.jsonl").exists()
    assert artifact.versions(models, "shapes") == []
    with lock.exclusive(folder, "the next run"):
        pass


@pytest.mark.parametrize(("name", "holder"), [("one", "first"), ("two", "second")])
def test_each_name_is_held_by_its_own_run(tmp_path: Path, name: str, holder: str) -> None:
    refused = pytest.raises(InputError, match=rf"Another run of {name} is at work: process \d+ .*\({holder}\)")
    with (
        lock.exclusive(tmp_path / "one", "first"),
        lock.exclusive(tmp_path / "two", "second"),
        refused,
        lock.exclusive(tmp_path / name, "third"),
    ):
        pass
