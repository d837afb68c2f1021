"""The engine that runs an artifact's network with OpenVINO."""

import importlib
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.serving import openvino
from app.serving.engine import Pixels
from app.serving.openvino import OpenVinoEngine, Precision
from tests.app import artifacts
from tests.app.artifacts import NORMALISATION, SIZE
from tests.app.pictures import direct, png
from training import artifact, export, picture, probe, quantiser, resnet
from training.calibration import Calibration
from training.errors import ArtifactError


@pytest.fixture(scope="module")
def folder(models: Path) -> Path:
    return models / "cifar10/1"


@pytest.fixture(scope="module")
def network(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted network."""
    path = tmp_path_factory.mktemp("openvino") / "network.xml"
    openvino.convert(folder / artifact.SCRIPT, SIZE, path)
    return path


def pictures(count: int) -> Pixels:
    return np.stack([picture.decode(png(seed), SIZE) for seed in range(count)])


def opened(path: Path, folder: Path, precision: Precision, instances: int = 1) -> OpenVinoEngine:
    engine = OpenVinoEngine(path, artifact.read_manifest(folder), precision, threads=2, instances=instances)
    engine.load()
    engine.warm_up(4)
    return engine


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-4), ("bf16", 0.1)])
def test_answers_are_the_probabilities_of_the_file(
    network: Path, folder: Path, precision: Precision, tolerance: float
) -> None:
    found = opened(network, folder, precision).predict(pictures(5))
    assert found.dtype == np.dtype(np.float32)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert np.allclose(found, direct(folder, *map(png, range(5))), atol=tolerance)


def test_instances_answer_side_by_side(network: Path, folder: Path) -> None:
    engine = opened(network, folder, "f32", instances=2)
    data = pictures(16)
    expected = engine.predict(data)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda number: engine.predict(data[number : number + 1])[0], range(16)))
    assert np.allclose(found, expected, atol=1e-5)


def test_quantised_network_answers_alike(network: Path, folder: Path, tmp_path: Path) -> None:
    brought = probe.read(folder / probe.PROBE)
    openvino.quantise(network, brought.pictures, tmp_path / "int8.xml")
    found = opened(tmp_path / "int8.xml", folder, "int8").predict(brought.pictures)
    assert (found.argmax(1) == brought.probabilities.argmax(1)).mean() > 0.7
    assert (tmp_path / "int8.bin").stat().st_size < 0.5 * network.with_suffix(".bin").stat().st_size


@pytest.mark.skipif(platform.machine() != "x86_64", reason="what has integer kernels differs by processor")
@pytest.mark.parametrize(
    ("architecture", "arguments"), [("fast_resnet", {"widths": [16, 16, 32]}), ("resnet20", {"width": 8})]
)
def test_version_in_integers_runs_on_integer_kernels(
    architecture: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = quantiser.quantised(resnet.build(architecture, 3, arguments).eval())
    images = torch.from_numpy(pictures(8))
    quantiser.fit(network, NORMALISATION, images)
    served = export.Served(network, NORMALISATION, Calibration(1))
    export.save_script(served, SIZE, tmp_path / artifact.SCRIPT)
    openvino.convert(tmp_path / artifact.SCRIPT, SIZE, tmp_path / "network.xml")
    core = importlib.import_module("openvino").Core()  # which the engine imported before, without its telemetry
    compiled = core.compile_model(tmp_path / "network.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    convolutions = [info for info in layers if info["layerType"] == "Convolution"]
    assert len(convolutions) >= 10
    assert all(info["runtimePrecision"] in {"i8", "u8"} for info in convolutions)
    # Sums, activation and rounding are done in the same kernel; only the last one's values stay as they are.
    assert all(info["outputPrecisions"] in {"i8", "u8"} for info in convolutions[:-1])
    with torch.inference_mode():
        expected = served(images)
    assert np.abs(compiled(images.numpy())[0] - expected.numpy()).max() < 0.1 * float(expected.std())


def test_damaged_network_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "network.xml").write_text("no network")
    engine = OpenVinoEngine(tmp_path / "network.xml", artifact.read_manifest(folder), "f32", threads=1)
    with pytest.raises(ArtifactError, match="cannot be compiled"):
        engine.load()


def test_engine_that_was_not_loaded_says_so(network: Path, folder: Path) -> None:
    with pytest.raises(RuntimeError, match="not loaded"):
        OpenVinoEngine(network, artifact.read_manifest(folder), "f32", threads=1).predict(pictures(1))


@pytest.mark.usefixtures("every_processor")
def test_first_batches_of_two_threads_do_not_wait_for_each_other(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1, architecture="resnet20", width=16)
    network = tmp_path / "network.xml"
    openvino.convert(folder / artifact.SCRIPT, SIZE, network)
    program = (
        "import sys; from pathlib import Path; from app.serving.openvino import OpenVinoEngine; "
        "from training import artifact; sys.setswitchinterval(1e-6); "
        f"engine = OpenVinoEngine(Path({str(network)!r}), artifact.read_manifest(Path({str(folder)!r})), 'f32', 2, 2); "
        "engine.load(); engine.warm_up(1)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_batches_of_a_network_of_one_size_are_filled_up(network: Path, folder: Path) -> None:
    engine = OpenVinoEngine(network, artifact.read_manifest(folder), "f32", threads=1, batch=4)
    engine.load()
    engine.warm_up(4)
    expected = opened(network, folder, "f32").predict(pictures(3))
    assert np.allclose(engine.predict(pictures(3)), expected, atol=1e-5)
