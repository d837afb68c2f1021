"""The lock on a run's folder, between real runs of the command line."""

import subprocess
from pathlib import Path

import pytest

from tests.training.command import FAST, command, training
from training import artifact, lock, run
from training.errors import InputError


def test_a_second_run_of_a_name_is_refused_until_the_first_is_dead(shapes: Path, tmp_path: Path) -> None:
    folder = run.runs_folder(tmp_path, "shapes")
    asked = ("train", *FAST, "--data", shapes, "--name", "shapes", "--models", tmp_path)
    with subprocess.Popen(
        command(*asked, "--set", "epochs=1000"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as first:
        try:
            assert first.stderr
            while "training 1000 epochs" not in (said := first.stderr.readline()):
                assert said, "the first run ended"
            second = training(*asked, "--resume")
        finally:
            first.kill()
    assert second.returncode == 2
    assert f"Another run of shapes is at work: process {first.pid} on " in second.stderr
    assert "(python -m training train " in second.stderr
    assert "Traceback" not in second.stderr
    assert (folder / "log.jsonl").exists()
    assert artifact.versions(tmp_path, "shapes") == []
    with lock.exclusive(folder, "the next run"):
        pass


@pytest.mark.parametrize("doing", ["prune", "quantise"])
def test_nor_is_another_version_made_of_it_meanwhile(models: Path, shapes: Path, doing: str) -> None:
    with lock.exclusive(run.runs_folder(models, "shapes"), "the first run"):
        second = training(doing, "--model", "shapes@1", "--data", shapes, "--models", models)
    assert second.returncode == 2
    assert "Another run of shapes is at work" in second.stderr
    assert artifact.versions(models, "shapes") == [1]


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
