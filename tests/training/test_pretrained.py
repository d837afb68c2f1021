"""Weights with torchvision's names in our networks: the same answers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from training import pretrained
from training.errors import InputError
from training.resnet import build


def torchvision_network(architecture: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = models.get_model(architecture, weights=None, num_classes=classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh norms hide mistakes
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network.eval()


@pytest.mark.parametrize(("architecture", "suffix"), [("resnet18", ".pth"), ("resnet50", ".safetensors")])
def test_torchvision_weights_give_torchvision_answers(architecture: str, suffix: str, tmp_path: Path) -> None:
    theirs = torchvision_network(architecture, 5)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    ours = build(architecture, 5, {"stem": "imagenet"})
    pretrained.load(ours, architecture, str(path))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_a_head_for_other_classes_stays_fresh(tmp_path: Path) -> None:
    theirs = torchvision_network("resnet18", 1000)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build("resnet18", 7, {"stem": "imagenet"})
    head = ours.head.weight.detach().clone()  # type: ignore[union-attr, operator]
    pretrained.load(ours, "resnet18", str(tmp_path / "weights.pth"))
    assert torch.equal(ours.head.weight, head)  # type: ignore[union-attr, arg-type]
    assert torch.equal(ours.stem[0].weight, theirs.conv1.weight)  # type: ignore[index, union-attr, arg-type]


def test_files_without_batch_counts_are_taken(tmp_path: Path) -> None:
    state = torchvision_network("resnet18", 3).state_dict()
    old = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(old, tmp_path / "weights.pth")
    pretrained.load(build("resnet18", 3, {"stem": "imagenet"}), "resnet18", str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("architecture", "arguments", "said"),
    [
        ("resnet18", {}, "do not fit resnet18"),
        ("resnet18", {"stem": "imagenet", "width": 8}, "do not fit resnet18"),
        ("resnet34", {"stem": "imagenet"}, "do not fit resnet34"),
        ("fast_resnet", {"widths": [8, 8, 8]}, "no pretrained weights for fast_resnet"),
    ],
)
def test_what_does_not_fit_is_said(architecture: str, arguments: dict[str, object], said: str, tmp_path: Path) -> None:
    torch.save(torchvision_network("resnet18", 3).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=said):
        pretrained.load(build(architecture, 3, arguments), architecture, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [b"", b"no weights", None])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_cannot_be_read(content: bytes | None, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        pretrained.load(build("resnet18", 3, {"stem": "imagenet"}), "resnet18", str(path))


def test_a_file_with_something_else_inside(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="does not hold weights by name"):
        pretrained.load(build("resnet18", 3, {"stem": "imagenet"}), "resnet18", str(tmp_path / "weights.pth"))


def test_networks_that_torchvision_lacks() -> None:
    with pytest.raises(InputError, match="torchvision has no weights for resnet20"):
        pretrained.load(build("resnet20", 3, {"width": 8}), "resnet20", "torchvision")
