"""The networks: their sizes, and how they start."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from training.errors import InputError
from training.resnet import ARCHITECTURES, FastBlock, FastResNet, PadShortcut, ResNet, build

SMALL: dict[str, dict[str, Any]] = {name: {"width": 8} for name in ARCHITECTURES}
SMALL |= {
    "fast_resnet": {"widths": [8, 16, 16]},
    "resnet": {"blocks": [1, 2], "block": "bottleneck", "width": 8, "stem": "imagenet"},
    "wide_resnet16_8": {"width": 8, "block_dropout": 0.1},
    "wide_resnet28_10": {"width": 8, "dropout": 0.1},
}
# Deep ones are the same blocks again; these show each kind.
KINDS = ("fast_resnet", "resnet", "resnet18", "resnet20", "resnet50", "wide_resnet16_8")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(architecture: str, classes: int, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return build(architecture, classes, arguments)


def multiply_adds(network: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize(
    ("architecture", "millions"),
    # Table 6 of arXiv:1512.03385.
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_cifar_networks_have_the_published_number_of_weights(architecture: str, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(parameters(on_meta(architecture, 10)) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("architecture", "published"),
    [
        ("resnet18", models.ResNet18_Weights.IMAGENET1K_V1),
        ("resnet34", models.ResNet34_Weights.IMAGENET1K_V1),
        ("resnet50", models.ResNet50_Weights.IMAGENET1K_V1),
        ("resnet101", models.ResNet101_Weights.IMAGENET1K_V1),
        ("resnet152", models.ResNet152_Weights.IMAGENET1K_V1),
    ],
)
def test_imagenet_networks_have_torchvisions_weights_and_multiply_adds(
    architecture: str, published: models.WeightsEnum
) -> None:
    network = on_meta(architecture, 1000, stem="imagenet")
    assert parameters(network) == published.meta["num_params"]
    assert multiply_adds(network, 224) / 1e9 == pytest.approx(published.meta["_ops"], abs=5e-4)


@pytest.mark.parametrize(
    ("architecture", "weights", "billions"),
    # Table 4 of arXiv:1605.07146; multiply-adds are those of the same layers, counted by hand.
    [("wide_resnet16_8", 11.0e6, 1.55), ("wide_resnet28_10", 36.5e6, 5.25)],
)
def test_wide_networks_have_the_published_number_of_weights(architecture: str, weights: float, billions: float) -> None:
    network = on_meta(architecture, 10)
    assert parameters(network) == pytest.approx(weights, rel=0.005)
    assert multiply_adds(network, 32) / 1e9 == pytest.approx(billions, rel=0.005)


def test_default_widths_are_those_of_the_names() -> None:
    assert parameters(build("resnet20", 10, {})) == 269_722
    assert parameters(build("resnet20", 10, {"width": 16})) == 269_722
    assert parameters(build("resnet18", 10, {})) == 11_173_962


@pytest.mark.parametrize(
    ("architecture", "depth"),
    [
        ("resnet18", 18),
        ("resnet34", 34),
        ("resnet50", 50),
        ("resnet101", 101),
        ("resnet152", 152),
        ("resnet20", 20),
        ("resnet32", 32),
        ("resnet44", 44),
        ("resnet56", 56),
        ("resnet110", 110),
        ("wide_resnet16_8", 16),
        ("wide_resnet28_10", 28),
    ],
)
def test_names_count_the_layers_with_weights(architecture: str, depth: int) -> None:
    network = on_meta(architecture, 10)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    # Shortcuts are not counted; the Wide ResNet paper counts them, one for each stage, in place of the head.
    shortcuts = sum("shortcut" in name for name in layers)
    counted = len(layers) - shortcuts if not architecture.startswith("wide") else len(layers) - 1
    assert counted == depth


def test_any_depth_by_arguments() -> None:
    network = build("resnet", 10, {"blocks": [1, 1, 2], "width": 16, "shortcut": "pad"})
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == 10
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_stems_differ_in_what_they_leave() -> None:
    pictures = torch.randn(1, 3, 64, 64)
    sizes = [build("resnet18", 2, {"width": 8, "stem": stem}).stem(pictures).shape[2] for stem in ("cifar", "imagenet")]  # type: ignore[operator]
    assert sizes == [64, 16]


def test_dropout_drops_in_training_only() -> None:
    torch.manual_seed(0)
    pictures = torch.randn(4, 3, 32, 32)
    for argument in ("dropout", "block_dropout"):
        network = build("wide_resnet16_8", 2, {"width": 8, argument: 0.5})
        assert not torch.equal(network(pictures), network(pictures))
        assert torch.equal(network.eval()(pictures), network(pictures))


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("size", [32, 48, 64])
def test_any_input_size_gives_one_row_of_logits_a_picture(architecture: str, size: int) -> None:
    network = build(architecture, 7, SMALL[architecture]).eval()
    logits = network(torch.randn(3, 3, size, size))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("architecture", KINDS)
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


@pytest.mark.parametrize("architecture", KINDS)
def test_one_picture_does_not_change_the_answer_for_another(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture, 4, SMALL[architecture]).eval()
    pictures = torch.randn(4, 3, 32, 32)
    alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(network(pictures), alone)


@pytest.mark.parametrize("architecture", KINDS)
def test_seed_decides_the_weights(architecture: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(architecture, 4, SMALL[architecture]).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_blocks_start_as_their_shortcut_unless_told_otherwise(block: str) -> None:
    arguments = {"blocks": [2], "block": block, "width": 8}
    x = torch.rand(2, 8 * (4 if block == "bottleneck" else 1), 6, 6)
    starts = {zero: build("resnet", 2, {**arguments, "zero_init": zero}).stages[1] for zero in (True, False)}  # type: ignore[index]
    torch.testing.assert_close(starts[True](x), x)  # type: ignore[operator]
    assert not torch.allclose(starts[False](x), x)  # type: ignore[operator]


def test_shortcut_without_weights_takes_every_second_pixel() -> None:
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    y = PadShortcut(extra=3, stride=2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3, 4]].any()


def test_stages_halve_the_size() -> None:
    network = ResNet(10, (1, 2, 1), width=8)
    features = network.stages(network.stem(torch.randn(1, 3, 32, 32)))
    assert features.shape == (1, 32, 8, 8)


def test_fast_block_convolutions_start_as_the_identity() -> None:
    block = FastBlock(8, 16)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block.conv1(x)[:, :8], x)
    y = torch.randn(2, 16, 3, 3)
    assert torch.equal(block.conv2(y), y)
    assert torch.equal(block.conv3(y), y)


def test_fast_block_may_have_one_convolution_less() -> None:
    block = FastBlock(8, 16, convolutions=2)
    assert [name for name, module in block.named_children() if isinstance(module, nn.Conv2d)] == ["conv1", "conv2"]
    network = build("fast_resnet", 10, {"widths": [8, 16, 16], "convolutions": 2})
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(InputError, match="convolutions"):
        build("fast_resnet", 10, {"convolutions": 4})


def test_fast_block_without_a_shortcut_gives_what_its_last_norm_gives() -> None:
    block = FastBlock(8, 16, convolutions=2, shortcut=False).eval()
    block.norm2.weight.data.zero_()
    block.norm2.bias.data.fill_(1.0)
    y = block(torch.randn(2, 8, 6, 6))
    assert torch.equal(y, torch.nn.functional.gelu(torch.ones(2, 16, 3, 3)))


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
        ("resnet19", {}, "Unknown architecture 'resnet19'. Use one of fast_resnet, resnet, resnet18, "),
        ("resnet18", {"blocks": [3, 3]}, "The name 'resnet18' stands for its blocks. Use resnet to choose them."),
        ("resnet", {"blocks": []}, "blocks"),
        ("resnet", {"blocks": [2, 0]}, "blocks"),
        ("resnet", {"stem": "large"}, "stem"),
        ("resnet", {"block": "thin"}, "block"),
        ("resnet", {"dropout": 1}, "dropout"),
        ("resnet18", {"depth": 3}, "depth"),
        ("resnet18", {"width": "wide"}, "width"),
        ("resnet20", {"width": 0}, "width"),
        ("resnet20", {"width": 7}, "width"),
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
