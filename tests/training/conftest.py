"""One small data set, and one model that was trained on it, for all tests of whole runs. They only read them."""

from pathlib import Path

import pytest

from tests.training.command import FAST, METHODS, training
from tests.training.shapes import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of discs and crosses."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A folder with the model `shapes`, trained for six epochs."""
    folder = tmp_path_factory.mktemp("models")
    arguments = ("train", *FAST, *METHODS, "--set", "epochs=6", "--data", shapes, "--name", "shapes")
    done = training(*arguments, "--models", folder)
    assert done.returncode == 0, done.stderr
    assert "shapes version 1" in done.stdout
    return folder
