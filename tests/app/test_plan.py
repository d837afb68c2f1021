"""Plans of networks, read off their TorchScript."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.serving import plan
from app.serving.plan import Plan
from tests.app.artifacts import NORMALISATION
from training import export, resnet
from training.calibration import Calibration
from training.errors import ArtifactError


class Of(nn.Module):
    """A network of a function, beside a convolution that it may use."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function

    def forward(self, pictures: Tensor) -> Tensor:
        return self.function(self.convolution, pictures)


def traced(network: nn.Module, folder: Path, size: int = 16) -> Plan:
    torch.manual_seed(0)
    export.save_script(export.Served(network, NORMALISATION, Calibration(1)), size, folder / "model.ts")
    return plan.trace(folder / "model.ts", size)


def steps(made: Plan) -> list[tuple[Any, ...]]:
    return [(step.kind, step.kernel, step.stride, step.residual, step.activation) for step in made.steps]


def test_what_follows_a_convolution_is_part_of_its_step(tmp_path: Path) -> None:
    network = resnet.build("resnet", 5, {"blocks": [1, 1], "width": 8, "shortcut": "pad"})
    assert steps(traced(network, tmp_path)) == [
        ("convolution", 3, 1, None, "relu"),
        ("convolution", 3, 1, None, "relu"),
        ("convolution", 3, 1, 1, "relu"),
        ("convolution", 3, 2, None, "relu"),
        ("convolution", 3, 1, None, "linear"),
        ("convolution", 1, 2, 5, "relu"),  # the shortcut, which copies every second pixel
        ("sum", 8, 1, None, "linear"),
        ("convolution", 1, 1, None, "linear"),
    ]


def test_norms_without_a_convolution_before_them_have_a_step(tmp_path: Path) -> None:
    made = traced(resnet.build("resnet", 5, {"blocks": [1], "width": 8, "block": "wide"}), tmp_path)
    assert [(step.kind, step.activation) for step in made.steps] == [
        ("convolution", "linear"),
        ("sum", "relu"),
        ("convolution", "relu"),
        ("convolution", "linear"),
        ("sum", "relu"),
        ("sum", "linear"),
        ("convolution", "linear"),
    ]


def test_values_that_are_used_twice_stay_as_they_are(tmp_path: Path) -> None:
    def function(conv: nn.Module, x: Tensor) -> Tensor:
        both = conv(x) + other(x)
        return mean(conv_of(F.relu(both)) + both)

    def conv_of(x: Tensor) -> Tensor:
        return F.conv2d(x, torch.ones(8, 8, 1, 1))

    made = traced(Of(function), tmp_path)
    assert steps(made) == [
        ("convolution", 3, 1, None, "linear"),
        ("convolution", 3, 1, 1, "linear"),
        ("sum", 1, 1, None, "relu"),
        ("convolution", 1, 1, 2, "linear"),
        ("sum", 16, 1, None, "linear"),
    ]


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = traced(resnet.build("fast_resnet", 5, {"widths": [8, 8, 8]}), tmp_path, size=32)
    made.save(tmp_path / "plan.safetensors")
    again = plan.read(tmp_path / "plan.safetensors")
    assert (again.values, again.steps) == (made.values, made.steps)
    for name in ("weights", "shifts"):
        pairs = zip(getattr(again, name), getattr(made, name), strict=True)
        assert all((one == other).all() for one, other in pairs)
    assert [path.name for path in tmp_path.glob("plan*")] == ["plan.safetensors"]


def other(pictures: Tensor) -> Tensor:
    return F.conv2d(pictures, torch.ones(8, 3, 3, 3), padding=1)


def mean(pictures: Tensor) -> Tensor:
    return pictures.mean((2, 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda conv, x: mean(torch.sigmoid(conv(x))), "aten::sigmoid"),
        (lambda conv, x: mean(F.gelu(conv(x), approximate="tanh")), "approximate"),
        (lambda conv, x: mean(F.conv2d(conv(x), torch.ones(8, 1, 3, 3), groups=8)), "in groups"),
        (lambda conv, x: mean(F.conv2d(conv(x), torch.ones(8, 8, 3, 3), dilation=2)), "dilated"),
        (lambda conv, x: mean(F.conv2d(conv(x), torch.ones(8, 8, 3, 1))), "not square"),
        (lambda conv, x: mean(F.max_pool2d(conv(x), 3, 2, ceil_mode=True)), "rounded up"),
        (lambda conv, x: mean(F.max_pool2d(conv(x), (2, 1))), "not square"),
        (lambda conv, x: mean(torch.relu(conv(x)) + 1), "a sum"),
        (lambda conv, x: mean(torch.add(conv(x), conv(x), alpha=2)), "a sum"),
        (lambda conv, x: mean(conv(x) / conv(x)), "division"),
        (lambda conv, x: mean((conv(x) + other(x)) / x.shape[1]), "division"),
        (lambda conv, x: mean(conv(torch.relu(x))), "convolution first"),
        (lambda conv, x: mean(F.conv2d(conv(x), torch.ones(3, 8, 1, 1)) + x), "a sum"),
        (lambda conv, x: mean(conv(x)[:, :, 1:]), "part of a picture"),
        (lambda conv, x: mean(F.relu(conv(x)[:, :, ::2])), "aten::relu"),
        (lambda conv, x: mean(F.pad(conv(x)[:, :, ::2, ::2], (1, 1))), "padding"),
        (lambda conv, x: mean(F.pad(conv(x)[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1), value=1.0)), "padding"),
        (lambda conv, x: conv(x).mean(1).flatten(1), "whole pictures"),
        (lambda conv, x: conv(x)[:, :, 0, 0], "aten::select"),
        (lambda conv, x: F.max_pool2d(conv(x), 2), "end with its logits"),
    ],
)
def test_layers_without_a_step_are_named(function: Callable[..., Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        traced(Of(function), tmp_path)


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.safetensors").write_text("no plan")
    with pytest.raises(ArtifactError, match="cannot be read"):
        plan.read(tmp_path / "plan.safetensors")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripts_without_named_parts_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Flatten()), tmp_path / "model.ts")
    with pytest.raises(ArtifactError, match="no named parts"):
        plan.trace(tmp_path / "model.ts", 16)
