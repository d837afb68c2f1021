"""Hyper-parameter search: real studies of tiny runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.shapes import write_shapes
from training.errors import InputError, TrainingError
from training.search import Choice, Range, Search, search, space

TINY = ("network.arguments={width=8}", "batch_size=8", "epochs=2", "precision='float32'", "schedule.warmup=0")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", count=20)


def asked(shapes: Path, folder: Path, *over: str) -> Search:
    storage = f"sqlite:///{folder}/search.db"
    return Search("resnet20", TINY, str(shapes), space(over), storage, "study", folder, device="cpu")


def test_the_best_trial_is_found_and_later_searches_add_to_the_study(shapes: Path, tmp_path: Path) -> None:
    over = ("optimizer.learning_rate=0.01:0.1:log", "augment.cutout=0,4", "batch_size=8:16")
    first = search(asked(shapes, tmp_path, *over), 2)
    assert first.trials == 2
    assert set(first.values) == {"optimizer.learning_rate", "augment.cutout", "batch_size"}
    assert 0.01 <= first.values["optimizer.learning_rate"] <= 0.1
    assert 8 <= first.values["batch_size"] <= 16
    later = search(asked(shapes, tmp_path, *over), 1)
    assert later.trials == 3
    assert later.accuracy >= first.accuracy


def test_trials_that_diverge_do_not_end_the_search(shapes: Path, tmp_path: Path) -> None:
    over = "optimizer.learning_rate=1e15,0.05"
    found = search(asked(shapes, tmp_path, over), 4)
    assert found.values == {"optimizer.learning_rate": "0.05"}
    assert found.pruned > 0


def test_a_search_without_a_finished_trial_says_so(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No trial came to an end"):
        search(asked(shapes, tmp_path, "optimizer.learning_rate=1e15,1e16"), 1)


def test_space() -> None:
    assert space(["a=1:5", "b.c=1e-4:1e-1:log", "d=x, y", "e=0.5:2"]) == {
        "a": Range(1, 5, log=False, whole=True),
        "b.c": Range(1e-4, 0.1, log=True, whole=False),
        "d": Choice(("x", "y")),
        "e": Range(0.5, 2, log=False, whole=False),
    }


def test_every_wrong_range_is_named() -> None:
    with pytest.raises(InputError) as caught:
        space(["a", "b=5", "c=5:1", "d=0:1:log", "e=x:y", "f=0:inf", "g=1:2"])
    assert [problem.split("'")[1] for problem in caught.value.problems] == [
        "a",
        "b=5",
        "c=5:1",
        "d=0:1:log",
        "e=x:y",
        "f=0:inf",
    ]


@pytest.mark.parametrize(
    ("over", "said"),
    [("nothing=1:2", "nothing"), ("network.input_size=32,64", "compared on the same pictures")],
)
def test_what_cannot_be_searched_over(shapes: Path, tmp_path: Path, over: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        search(asked(shapes, tmp_path, over), 1)


def test_storage_that_cannot_be_opened(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        search(asked(shapes, tmp_path / "missing", "epochs=1:2"), 1)


def test_the_command_gives_values_to_paste(shapes: Path, tmp_path: Path) -> None:
    settings = [part for override in TINY for part in ("--set", override)]
    command = [sys.executable, "-m", "training", "search", "--recipe", "resnet20", *settings, "--trials", "1"]
    over = ["--over", "optimizer.learning_rate=0.01:0.1:log", "--device", "cpu"]
    done = subprocess.run(
        [*command, *over, "--data", shapes, "--models", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--set optimizer.learning_rate=0.0" in done.stdout
    assert (tmp_path / ".runs" / "search.db").exists()
