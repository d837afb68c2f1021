"""What the command line checks, records and prints."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training.command import FAST, training
from tests.training.shapes import write_shapes
from training import artifact, cli

WIDE = {**os.environ, "COLUMNS": "300"}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes, and a folder for models, all of whose names Rich could take for markup."""
    folder = tmp_path_factory.mktemp("marked")
    write_shapes(folder / "mugs", count=20)
    (folder / "mugs" / "disc").rename(folder / "mugs" / "mug [left] :car:")
    (folder / "mugs" / "cross").rename(folder / "mugs" / "mug [right] $_$")
    return folder


def test_names_are_printed_as_they_are(marked: Path) -> None:
    source, models = marked / "mugs", marked / "models [new]"
    done = training(
        "train", *FAST, "--set", "epochs=1", f"--data={source}", "--name", "m", "--models", models, env=WIDE
    )
    assert done.returncode == 0, done.stderr
    assert f"It lies in {artifact.folder(models, 'm', 1)};" in done.stdout
    assert "--data=mugs --name m --models 'models [new]'" in artifact.read_manifest(models / "m" / "1").command
    table = training("evaluate", "--model", "m", "--data", source, "--models", models, env=WIDE)
    assert table.returncode == 0, table.stderr
    for name in ("mug [left] :car:", "mug [right] $_$"):
        assert name in table.stdout


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        (["--data", "/a/b.zip"], ["--data", "b.zip"]),
        (["--data=/a/b.zip"], ["--data=b.zip"]),
        (["--data", "/a/run=3/b"], ["--data", "b"]),
        (["--data=/a/run=3/b/"], ["--data=b"]),
        (["--set", "network.pretrained=/a/r.pth"], ["--set", "network.pretrained=r.pth"]),
        (["--set=network.pretrained = '/a/r.pth'"], ["--set=network.pretrained = 'r.pth'"]),
        (["--set", "network.arguments={file='/a/b'}"], ["--set", "network.arguments={file='/a/b'}"]),
        (["--set", "schedule.milestones=[0.5]", "--resume"], ["--set", "schedule.milestones=[0.5]"]),
    ],
)
def test_the_recorded_command_names_files_without_their_folders(
    monkeypatch: pytest.MonkeyPatch, given: Sequence[str], recorded: Sequence[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "train", *given])
    assert cli._command() == ["python", "-m", "training", "train", *recorded]


RECIPE = ("--recipe", "cpu", "--set", "epochs=0", "--set", "nope")
NAME = ("--name", "X/y")
DATA = ("--data", "/nope")
NO_RECIPE = ("Recipe cpu: epochs: ", "--set 'nope' is not of the form key=value")
NO_MODEL = "There is no model 'none'"
NO_NAME = "'X/y' cannot be a model's name"
NO_DATA = "There is nothing at '/nope'"
NO_OTHER = "There is nothing at '/other'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", *RECIPE, *NAME, *DATA), (*NO_RECIPE, NO_NAME, NO_DATA)),
        (("train", "--recipe", "none", *NAME, *DATA), ("There is no recipe 'none'", NO_NAME, NO_DATA)),
        (
            ("finetune", "--base", "none", *NAME, *DATA, "--base-data", "/other", "--learning-rate", "0"),
            (NO_MODEL, NO_NAME, NO_DATA, NO_OTHER, "--learning-rate is a number above 0"),
        ),
        (("evaluate", "--model", "none", *DATA, "--ood", "/other"), (NO_MODEL, NO_DATA, NO_OTHER)),
        (("prune", "--model", "none", *DATA), (NO_MODEL, NO_DATA)),
        (("quantise", "--model", "none", *DATA), (NO_MODEL, NO_DATA)),
        (("crossvalidate", *RECIPE, *DATA), (*NO_RECIPE, NO_DATA)),
        (("search", *RECIPE, *DATA, "--over", "epochs=2:1"), ("--over 'epochs=2:1'", *NO_RECIPE, NO_DATA)),
    ],
)
def test_all_that_is_wrong_with_the_arguments_is_named_at_once(
    tmp_path: Path, arguments: Sequence[str], said: Sequence[str]
) -> None:
    done = training(*arguments, "--models", tmp_path, env=WIDE)
    assert done.returncode == 2
    for problem in said:
        assert problem in done.stderr
    assert "threads for torch" not in done.stderr
    assert not list(tmp_path.iterdir())
