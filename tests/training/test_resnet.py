"""The networks: their sizes, and how they start."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.errors import InputError
from training.resnet import ARCHITECTURES, BasicBlock, FastBlock, FastResNet, PadShortcut, ResNet, build

SMALL: dict[str, dict[str, Any]] = {
    "fast_resnet": {"widths": [8, 16, 16]},
    "resnet18": {"width": 8},
    "resnet20": {"width": 8},
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_sizes() -> None:
    assert parameters(build("resnet20", 10, {})) == 269_722  # 0.27 M in table 6 of the paper
    assert parameters(build("resnet20", 10, {"width": 16})) == 269_722
    assert parameters(build("resnet18", 10, {})) == 11_173_962


def test_resnet20_has_twenty_layers_with_weights() -> None:
    layers = [module for module in build("resnet20", 10, {}).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [32, 48, 64])
def test_any_input_size_gives_one_row_of_logits_a_picture(architecture: str, size: int) -> None:
    network = build(architecture, 7, SMALL[architecture]).eval()
    logits = network(torch.randn(3, 3, size, size))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_trained_weight_gets_a_gradient(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture, 4, SMALL[architecture])
    # The last norm of a block starts at zero and hides what lies before it, so a step goes first.
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    pictures, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(pictures), labels).backward()
        optimizer.step()
    without = [
        name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_picture_does_not_change_the_answer_for_another(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture, 4, SMALL[architecture]).eval()
    pictures = torch.randn(4, 3, 32, 32)
    alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(network(pictures), alone)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_seed_decides_the_weights(architecture: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(architecture, 4, SMALL[architecture]).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_blocks_start_as_their_shortcut() -> None:
    block = BasicBlock(8, 8, stride=1, pad_shortcut=False)
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(block(x), x)


def test_shortcut_without_weights_takes_every_second_pixel() -> None:
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    y = PadShortcut(extra=3, stride=2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3, 4]].any()


def test_stages_halve_the_size() -> None:
    network = ResNet(10, (1, 2, 1), (4, 8, 16))
    features = network.stages(network.stem(torch.randn(1, 3, 32, 32)))
    assert features.shape == (1, 16, 8, 8)


def test_fast_block_convolutions_start_as_the_identity() -> None:
    block = FastBlock(8, 16)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block.conv1(x)[:, :8], x)
    y = torch.randn(2, 16, 3, 3)
    assert torch.equal(block.conv2(y), y)
    assert torch.equal(block.conv3(y), y)


def test_first_layer_whitens_the_training_pictures() -> None:
    torch.manual_seed(0)
    # Neighbouring pixels and channels go together, as in photos.
    pictures = nn.functional.interpolate(torch.randn(64, 3, 16, 16), scale_factor=2, mode="bilinear")
    pictures = pictures + 0.5 * pictures.mean(1, keepdim=True) + 0.05 * torch.randn_like(pictures)
    network = FastResNet(10, (8, 16, 16))
    network.prepare(pictures)
    answers = network.whiten(pictures)
    assert answers.shape[1] == 24
    torch.testing.assert_close(answers[:, 12:], -answers[:, :12])
    flat = answers[:, :12].transpose(0, 1).flatten(1)
    # Directions with less variance than the damping of 5e-4 would be left below one; none has so little here.
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.eye(12), atol=0.15, rtol=0)


def test_first_layer_takes_constant_pictures() -> None:
    network = FastResNet(10, (8, 16, 16))
    network.prepare(torch.zeros(4, 3, 32, 32))
    assert network.whiten.weight.isfinite().all()


def test_what_is_set_once_is_not_trained() -> None:
    network = FastResNet(10, (8, 16, 16))
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    norms = {f"blocks.{block}.norm{norm}.weight" for block in range(3) for norm in (1, 2, 3)}
    assert fixed == {"whiten.weight", *norms}


@pytest.mark.parametrize(
    ("architecture", "arguments", "said"),
    [
        ("resnet50", {}, "Unknown architecture 'resnet50'. Use one of fast_resnet, resnet18, resnet20."),
        ("resnet18", {"depth": 3}, "depth"),
        ("resnet18", {"width": "wide"}, "width"),
        ("resnet20", {"width": 0}, "width"),
        ("resnet20", {"width": -4}, "width"),
        ("fast_resnet", {"widths": [64, 64]}, "widths"),
        ("fast_resnet", {"widths": [64, 0, 64]}, "widths"),
        ("fast_resnet", {"classes": 3}, "classes"),
    ],
)
def test_what_cannot_be_built(architecture: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(architecture, 10, arguments)


def test_every_wrong_argument_is_named() -> None:
    with pytest.raises(InputError) as caught:
        build("resnet18", 10, {"width": "wide", "depth": 3})
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "Architecture 'resnet18', argument width",
        "Architecture 'resnet18', argument depth",
    ]
