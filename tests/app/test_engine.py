"""The engine that runs an artifact's TorchScript."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app.serving.engine import TorchScriptEngine
from tests.app.artifacts import CLASSES, SIZE
from tests.app.pictures import direct, png
from training import artifact, picture
from training.errors import ArtifactError

CPU = torch.device("cpu")


def test_answers_are_the_probabilities_of_the_file(models: Path) -> None:
    engine = TorchScriptEngine(models / "cifar10/1" / artifact.SCRIPT, SIZE, len(CLASSES), CPU)
    engine.load()
    engine.warm_up(8)
    data = [png(seed) for seed in range(5)]
    found = engine.predict(np.stack([picture.decode(entry, SIZE) for entry in data]))
    assert found.dtype == np.dtype(np.float32)
    assert found.shape == (5, 10)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert np.allclose(found, direct(models / "cifar10/1", *data), atol=1e-4)


def test_classes_that_differ_from_the_file_are_refused(models: Path) -> None:
    engine = TorchScriptEngine(models / "cifar10/1" / artifact.SCRIPT, SIZE, 11, CPU)
    engine.load()
    with pytest.raises(ArtifactError, match="names 11 classes"):
        engine.warm_up(8)


def test_file_that_is_no_script_is_refused(tmp_path: Path) -> None:
    path = tmp_path / artifact.SCRIPT
    path.write_bytes(b"no script")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        TorchScriptEngine(path, SIZE, len(CLASSES), CPU).load()


def test_engine_that_was_not_loaded_says_so() -> None:
    engine = TorchScriptEngine(Path("model.ts"), SIZE, len(CLASSES), CPU)
    with pytest.raises(RuntimeError, match=r"Call load\(\) first"):
        engine.predict(np.zeros((1, 3, SIZE, SIZE), np.uint8))
