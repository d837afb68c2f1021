"""Packaging: the files of a version agree with the network that they come from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import partition
from training import artifact, data, export, packaging, recipe, resnet
from training.calibration import Calibration
from training.device import CPU
from training.errors import ArtifactError, TrainingError
from training.normalisation import Normalisation


def test_the_weights_alone_give_what_the_script_gives(models: Path, shapes: Path) -> None:
    folder = artifact.folder(models, "shapes", 1)
    manifest = artifact.read_manifest(folder)
    network = resnet.build(manifest.architecture, len(manifest.classes), manifest.arguments)
    network.load_state_dict(load_file(folder / artifact.WEIGHTS))
    network.eval()
    images = data.load(str(shapes), manifest.input_size).splits["train"].images[:16]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (manifest.mean, manifest.std))
    script = export.load_script(folder / artifact.SCRIPT, CPU)
    with torch.inference_mode():
        calibration = Calibration(manifest.temperature, manifest.temperature_certain)
        expected = calibration(network((images / 255 - mean) / std))
        torch.testing.assert_close(script(images), expected, rtol=1e-4, atol=1e-4)


def test_weights_that_their_format_cannot_hold_are_not_blamed_on_the_exporter(tmp_path: Path) -> None:
    chosen = recipe.load("resnet20", ["network.arguments={width=8}", "weights='float16'"])
    network = resnet.build("resnet20", 2, {"width": 8})
    torch.nn.init.constant_(network.get_submodule("head").get_parameter("weight"), 1e5)
    parts = partition(16)
    normalise = Normalisation.of(parts.train.images)
    with pytest.raises(TrainingError, match=r"not finite with its weights stored in float16"):
        packaging.write_network(tmp_path, network, normalise, parts, ("left", "right"), chosen, CPU)


def test_a_wrong_export_is_refused() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    expected = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ArtifactError, match="2 other answers"):
        packaging.check_agreement(lambda batch: torch.tensor([[0.0, 1.0]]).expand(len(batch), 2), images, expected)
    with pytest.raises(ArtifactError, match="disagrees"):
        packaging.check_agreement(lambda batch: torch.full((len(batch), 2), torch.nan), images, expected)
