"""The engine without a library: what the file of a version says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.serving import native
from app.serving.engine import Pixels, softmax
from app.serving.native import NativeEngine
from tests import needs
from tests.app.artifacts import NORMALISATION, SIZE
from tests.app.pictures import png
from training import artifact, export, picture, resnet
from training.artifact import Manifest
from training.calibration import Calibration
from training.errors import ArtifactError


@pytest.fixture(autouse=True)
def compiled() -> None:
    needs.compiled()


@pytest.fixture(scope="module")
def manifest(models: Path) -> Manifest:
    return artifact.read_manifest(models / "cifar10/1")


@pytest.fixture(scope="module")
def path(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan."""
    found = tmp_path_factory.mktemp("native") / "plan.safetensors"
    native.convert(models / "cifar10/1" / artifact.SCRIPT, SIZE, found)
    return found


def pictures(count: int, size: int = SIZE) -> Pixels:
    return np.stack([picture.decode(png(seed), size) for seed in range(count)])


def opened(path: Path, manifest: Manifest, threads: int = 1, instances: int = 1) -> NativeEngine:
    engine = NativeEngine(path, manifest, threads, instances)
    engine.load()
    engine.warm_up(4)
    return engine


def lived(network: nn.Module) -> nn.Module:
    """The network with norms as if it had been trained."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


@pytest.mark.parametrize(
    ("architecture", "arguments", "size"),
    [
        ("resnet20", {"width": 8}, 32),
        ("resnet20", {"width": 9}, 30),
        ("resnet18", {"width": 16}, 32),
        ("resnet18", {"width": 8, "stem": "imagenet"}, 75),
        ("resnet50", {"width": 8}, 32),
        ("wide_resnet16_8", {"width": 8}, 28),
        ("fast_resnet", {"widths": [24, 16, 40]}, 32),
        ("fast_resnet", {"widths": [24, 16, 40], "convolutions": 2, "shortcut": False, "whiten_bias": True}, 48),
    ],
)
@pytest.mark.parametrize("certain", [None, 0.5])
def test_answers_are_those_of_the_network(
    architecture: str, arguments: dict[str, Any], size: int, certain: float | None, manifest: Manifest, tmp_path: Path
) -> None:
    network = lived(resnet.build(architecture, 10, arguments))
    served = export.Served(network, NORMALISATION, Calibration(2, certain))
    export.save_script(served, size, tmp_path / artifact.SCRIPT)
    native.convert(tmp_path / artifact.SCRIPT, size, tmp_path / "plan.safetensors")
    facts = {"input_size": size, "mean": NORMALISATION.mean, "std": NORMALISATION.std}
    told = manifest.model_copy(update={**facts, "temperature": 2, "temperature_certain": certain})
    data = pictures(5, size)
    found = opened(tmp_path / "plan.safetensors", told).predict(data)
    with torch.inference_mode():
        expected = softmax(served(torch.from_numpy(data)).numpy())
    assert found.dtype == np.dtype(np.float32)
    assert np.abs(found - expected).max() < 1e-4


def test_instances_answer_side_by_side(path: Path, manifest: Manifest) -> None:
    engine = opened(path, manifest, threads=2, instances=2)
    data = pictures(16)
    expected = engine.predict(data)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda number: engine.predict(data[number : number + 1])[0], range(16)))
    assert np.array_equal(found, expected)


def test_pictures_may_lie_anywhere_in_memory(path: Path, manifest: Manifest) -> None:
    engine, data = opened(path, manifest), pictures(8)
    assert np.array_equal(engine.predict(data[::-2]), engine.predict(data)[::-2])


def test_engine_that_was_not_loaded_says_so(path: Path, manifest: Manifest) -> None:
    with pytest.raises(RuntimeError, match="not loaded"):
        NativeEngine(path, manifest, threads=1).predict(pictures(1))


def test_network_with_other_classes_than_its_manifest_is_refused(path: Path, manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match="Export the model anew"):
        opened(path, manifest.model_copy(update={"classes": ("cat", "dog")}))
