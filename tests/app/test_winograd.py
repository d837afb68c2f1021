"""Convolutions by Winograd's method: the same answers, whatever the size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.serving import openvino, winograd
from app.serving.engine import Pixels
from tests.app.artifacts import NORMALISATION
from training import export
from training.calibration import Calibration
from training.errors import ArtifactError


def convolution(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})


def converted(folder: Path, size: int, *layers: nn.Module) -> Path:
    torch.manual_seed(0)
    served = export.Served(nn.Sequential(*layers, nn.Flatten()).eval(), NORMALISATION, Calibration(1))
    export.save_script(served, size, folder / "model.ts")
    openvino.convert(folder / "model.ts", size, folder / "network.xml")
    return folder / "network.xml"


def convolutions(path: Path) -> list[str]:
    model = openvino.library().Core().read_model(path)
    return [kind for node in model.get_ordered_ops() if "Convolution" in (kind := node.get_type_name())]


def answers(path: Path, pictures: Pixels, precision: str = "f32") -> Any:
    compiled = openvino.library().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return compiled(pictures)[0]


@pytest.mark.parametrize("size", [13, 8, 7, 4, 3, 2])
def test_answers_stay_what_they_were(size: int, tmp_path: Path) -> None:
    layers = (convolution(3, 64), nn.ReLU(), convolution(64, 96), nn.ReLU(), convolution(96, 64, bias=False))
    path = converted(tmp_path, size, *layers)
    winograd.convert(path, 4, tmp_path / "winograd.xml")
    assert convolutions(tmp_path / "winograd.xml").count("GroupConvolution") == 2 * 16
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, size, size), np.uint8)
    expected = answers(path, pictures)
    found = answers(tmp_path / "winograd.xml", pictures)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_bfloat16_is_about_as_near_as_without(tmp_path: Path) -> None:
    path = converted(tmp_path, 8, convolution(3, 64), *(convolution(64, 64) for _ in range(4)))
    winograd.convert(path, 4, tmp_path / "winograd.xml")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    expected = answers(path, pictures)
    plain, found = (answers(network, pictures, "bf16") for network in (path, tmp_path / "winograd.xml"))
    assert np.abs(found - expected).max() < 4 * np.abs(plain - expected).max() + 1e-6


@pytest.mark.parametrize(
    "layer",
    [
        convolution(64, 64, stride=2),
        convolution(64, 64, dilation=2, padding=2),
        convolution(64, 64, padding=0),
        convolution(64, 64, groups=2),
        convolution(64, 32),
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, (3, 1), padding=(1, 0)),
    ],
)
def test_other_convolutions_stay_as_they_are(layer: nn.Conv2d, tmp_path: Path) -> None:
    path = converted(tmp_path, 8, convolution(3, 64), layer)
    with pytest.raises(ArtifactError, match="no 3x3 convolution with 64 channels"):
        winograd.convert(path, 4, tmp_path / "winograd.xml")
    assert not (tmp_path / "winograd.xml").exists()
