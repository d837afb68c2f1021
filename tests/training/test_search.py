"""Hyper-parameter search: real studies of tiny runs."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import optuna
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


LOW = "optimizer.learning_rate=0.01:0.02:log"
CUTOUT = "augment.cutout=0,4"


def test_a_study_is_of_one_search(shapes: Path, tmp_path: Path) -> None:
    first = asked(shapes, tmp_path, LOW, CUTOUT)
    search(first, 1)
    more = write_shapes(tmp_path / "more", count=22)
    others = {
        "data": dataclasses.replace(first, source=str(more)),
        "epochs was 2 and is now 3": dataclasses.replace(first, overrides=(*TINY, "epochs=3")),
        "average.decay was not set and is now 0.9": dataclasses.replace(first, overrides=(*TINY, "average.decay=0.9")),
        "--seed was 0 and is now 1": dataclasses.replace(first, seed=1),
        "--over optimizer.learning_rate was 0.01:0.02:log and is now 0.1:0.2:log": dataclasses.replace(
            first, space=space(["optimizer.learning_rate=0.1:0.2:log", CUTOUT])
        ),
        "--over augment.cutout was 0,4 and is now 0,8": dataclasses.replace(
            first, space=space([LOW, "augment.cutout=0,8"])
        ),
        "--over augment.cutout was 0,4 and is now not set": dataclasses.replace(first, space=space([LOW])),
    }
    for said, other in others.items():
        with pytest.raises(InputError) as caught:
            search(other, 1)
        assert said in str(caught.value)
        assert "Name another --study" in str(caught.value)
    again = dataclasses.replace(first, source=f"{shapes}/", space=space([CUTOUT, LOW]))
    assert search(again, 1).trials == 2


def test_a_study_without_a_name_is_that_of_the_search(shapes: Path, tmp_path: Path) -> None:
    one = dataclasses.replace(asked(shapes, tmp_path, LOW), study=None)
    other = dataclasses.replace(one, space=space(["optimizer.learning_rate=0.03:0.04"]))
    assert search(one, 1).trials == 1
    found = search(other, 1)
    assert found.trials == 1
    assert 0.03 <= found.values["optimizer.learning_rate"] <= 0.04
    assert search(one, 1).trials == 2
    names = optuna.get_all_study_names(one.storage)
    assert len(names) == 2
    assert all(name.startswith("resnet20-") for name in names)


def test_a_study_that_does_not_say_what_it_is_about_is_refused(shapes: Path, tmp_path: Path) -> None:
    wanted = asked(shapes, tmp_path, LOW)
    optuna.create_study(study_name="study", storage=wanted.storage, direction="maximize").add_trial(
        optuna.trial.create_trial(value=0.9)
    )
    with pytest.raises(InputError, match="does not say what they are about"):
        search(wanted, 1)


def test_what_is_searched_over_is_told_as_it_is_given() -> None:
    given = ["1:5", "0.0001:0.1:log", "1:8:log", "-2.5:2.0", "x,y"]
    read = space([f"key{place}={text}" for place, text in enumerate(given)])
    assert [str(choices) for choices in read.values()] == given


def command(shapes: Path, folder: Path) -> list[str]:
    """A search of one trial, in a process of its own."""
    settings = [part for override in TINY for part in ("--set", override)]
    start = [sys.executable, "-m", "training", "search", "--recipe", "resnet20", *settings, "--trials", "1"]
    over = ["--over", "optimizer.learning_rate=0.01:0.1:log", "--device", "cpu"]
    return [*start, *over, "--data", str(shapes), "--models", str(folder)]


def test_searches_that_share_a_storage_work_on_one_study(shapes: Path, tmp_path: Path) -> None:
    first, second = (
        subprocess.Popen(command(shapes, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    for process in (first, second):
        _, said = process.communicate()
        assert process.returncode == 0, said
    storage = f"sqlite:///{tmp_path}/.runs/search.db"
    (name,) = optuna.get_all_study_names(storage)
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == 2


def test_trials_that_diverge_do_not_end_the_search(shapes: Path, tmp_path: Path) -> None:
    over = "optimizer.learning_rate=1e15,0.05"
    found = search(asked(shapes, tmp_path, over), 4)
    assert found.values == {"optimizer.learning_rate": "0.05"}
    assert found.pruned > 0


def test_trials_that_the_recipe_refuses_do_not_end_the_search(shapes: Path, tmp_path: Path) -> None:
    odd, even = (f"batch_size={batches}" for batches in ("9,11", "9,8"))
    wanted = dataclasses.replace(asked(shapes, tmp_path, even), overrides=(*TINY, "accumulate=2"))
    found = search(wanted, 4)
    assert found.values == {"batch_size": "8"}
    assert (found.trials, 0 < found.pruned < 4) == (4, True)
    with pytest.raises(InputError, match="batch_size has to be a multiple of accumulate"):
        search(dataclasses.replace(wanted, space=space([odd]), study="odd"), 2)
    assert len(optuna.load_study(study_name="odd", storage=wanted.storage).trials) == 2


def test_a_trial_is_judged_by_the_network_that_it_ends_with(tmp_path: Path) -> None:
    source = tmp_path / "shapes"
    for first, part in enumerate(("train", "test", "val")):
        write_shapes(source / part, count=20, first=20 * first)
    # What is learnt from the training pictures is wrong for these.
    for kind, other in (("disc", "other"), ("cross", "disc"), ("other", "cross")):
        (source / "val" / kind).rename(source / "val" / other)
    settings = (*TINY, "epochs=6", "optimizer.learning_rate=0.05", "early_stopping={metric='accuracy', patience=9}")
    wanted = dataclasses.replace(asked(source, tmp_path, CUTOUT), overrides=settings)
    found = search(wanted, 1)
    (trial,) = optuna.load_study(study_name="study", storage=wanted.storage).trials
    told = list(trial.intermediate_values.values())
    assert found.accuracy == max(told) > told[-1]


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
    done = subprocess.run(command(shapes, tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--set optimizer.learning_rate=0.0" in done.stdout
    assert (tmp_path / ".runs" / "search.db").exists()
