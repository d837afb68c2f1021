"""The engine that runs an artifact's TorchScript."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app.serving.torchscript import Precision, TorchScriptEngine
from tests.app.artifacts import SIZE
from tests.app.pictures import direct, png
from training import artifact, picture
from training.errors import ArtifactError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-4), ("bf16", 0.1)])
def test_answers_are_the_probabilities_of_the_file(models: Path, precision: Precision, tolerance: float) -> None:
    folder = models / "cifar10/1"
    engine = TorchScriptEngine(folder, artifact.read_manifest(folder), CPU, precision)
    engine.load()
    engine.warm_up(8)
    data = [png(seed) for seed in range(5)]
    found = engine.predict(np.stack([picture.decode(entry, SIZE) for entry in data]))
    assert found.dtype == np.dtype(np.float32)
    assert found.shape == (5, 10)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert np.allclose(found, direct(folder, *data), atol=tolerance)


def test_classes_that_differ_from_the_file_are_refused(models: Path) -> None:
    manifest = artifact.read_manifest(models / "cifar10/1")
    engine = TorchScriptEngine(
        models / "cifar10/1", manifest.model_copy(update={"classes": (*manifest.classes, "frog")}), CPU
    )
    engine.load()
    with pytest.raises(ArtifactError, match="names 11 classes"):
        engine.warm_up(8)


def test_file_that_is_no_script_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / artifact.SCRIPT).write_bytes(b"no script")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        TorchScriptEngine(tmp_path, artifact.read_manifest(models / "cifar10/1"), CPU).load()


def test_engine_that_was_not_loaded_says_so(models: Path) -> None:
    engine = TorchScriptEngine(models, artifact.read_manifest(models / "cifar10/1"), CPU)
    with pytest.raises(RuntimeError, match=r"Call load\(\) first"):
        engine.predict(np.zeros((1, 3, SIZE, SIZE), np.uint8))
