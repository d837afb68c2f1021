"""The networks: the family of residual networks for small and large pictures, and a small one that is fast on a CPU."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, validate_call
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import InputError
from training.pyramid import Pyramid

Share = Annotated[float, Field(ge=0, lt=1)]
# With fewer, the gradient of a strided 1x1 convolution in channels_last crashes on processors with AVX2 and no AVX-512
# (oneDNN 3.12, in torch 2.14).
Width = Annotated[int, Field(ge=8)]


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1) and leaves the bias to the norm behind it."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of single pixels, without a bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 5 left)."""

    EXPANSION = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(self.dropout(y))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones that shrink and widen, and a shortcut (figure 5 right).

    The 3x3 convolution takes the stride, as in torchvision and most of the networks that came after the paper.
    """

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        outputs = self.EXPANSION * width
        self.conv1 = conv1x1(inputs, width)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv3 = conv1x1(width, outputs)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(self.dropout(y))) + self.shortcut(x))


class WideBlock(nn.Module):
    """Norm and activation before each 3x3 convolution (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

    Where the shape changes, the shortcut takes the activated input too.
    """

    EXPANSION = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, width, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(width, width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        straight = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(y)
        return self.conv2(self.dropout(F.relu(self.norm2(self.conv1(y))))) + straight  # type: ignore[no-any-return]


class PadShortcut(nn.Module):
    """The shortcut without weights: every second pixel, new channels zero (He et al. 2015, option A)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))


Block = type[BasicBlock] | type[Bottleneck] | type[WideBlock]
BLOCKS: Mapping[str, Block] = MappingProxyType({"basic": BasicBlock, "bottleneck": Bottleneck, "wide": WideBlock})


def _shortcut(block: Block, inputs: int, outputs: int, stride: int, pad: bool) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if pad:
        return PadShortcut(outputs - inputs, stride)
    if block is WideBlock:  # its input is normalised already
        return conv1x1(inputs, outputs, stride)
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network: a stem, stages of blocks, the mean over all places, and a linear head.

    Input float [N, 3, H, W], normalised; output logits float [N, classes]. Every stage after the first halves the
    size and doubles the channels.

    Args:
        classes: number of classes.
        blocks: blocks in each stage.
        block: one of `BLOCKS`.
        width: channels of the stem, and of the first stage before `widen` and the block's expansion; at least 8.
        widen: how many times wider the stages are than their names say; the k of a Wide ResNet.
        stem: `cifar` is a 3x3 convolution that keeps the size; `imagenet` is a 7x7 convolution and a max-pooling that
            leave a quarter of it, made for pictures of about 224 pixels.
        shortcut: `project` by a 1x1 convolution where the shape changes, or `pad` with zeros, without weights.
        zero_init: whether each block starts as its shortcut, by zeros as the weights of its last norm (Goyal et al.
            2017, arXiv:1706.02677, section 5.1). Wide blocks end in a convolution and are left as they are.
        block_dropout: share of the values dropped before the last convolution of each block, as in Wide ResNets.
        dropout: share of the features dropped before the head.
    """

    @validate_call
    def __init__(  # noqa: PLR0913  a family has many members
        self,
        classes: int,
        blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=6)],
        *,
        block: Literal["basic", "bottleneck", "wide"] = "basic",
        width: Width = 64,
        widen: PositiveInt = 1,
        stem: Literal["cifar", "imagenet"] = "cifar",
        shortcut: Literal["project", "pad"] = "project",
        zero_init: bool = True,
        block_dropout: Share = 0.0,
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        kind = BLOCKS[block]
        self.stem = _stem(width, stem, activated=kind is not WideBlock)
        stages: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            inner = width * widen * 2**stage
            for number in range(count):
                stride = 2 if stage and not number else 1
                outputs = inner * kind.EXPANSION
                straight = _shortcut(kind, inputs, outputs, stride, shortcut == "pad")
                stages.append(kind(inputs, inner, stride, straight, block_dropout))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.last = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if kind is WideBlock else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(inputs, classes)
        self._start(zero_init)

    def _start(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init and isinstance(module, BasicBlock):
                nn.init.zeros_(module.norm2.weight)
            elif zero_init and isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        features = self.last(self.stages(self.stem(x))).mean((2, 3))
        return self.head(self.dropout(features))  # type: ignore[no-any-return]


def _stem(width: int, kind: Literal["cifar", "imagenet"], activated: bool) -> nn.Sequential:
    small = kind == "cifar"
    layers: list[nn.Module] = [conv3x3(3, width) if small else nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)]
    if activated:
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    if not small:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*layers)


class FastBlock(nn.Module):
    """Convolution and pooling, then one or two more convolutions: most work is done at the smaller size."""

    def __init__(self, inputs: int, outputs: int, convolutions: Literal[2, 3] = 3, shortcut: bool = True) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.conv1 = conv3x3(inputs, outputs)
        self.norm1 = _shift_norm(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = _shift_norm(outputs)
        if convolutions == 3:
            self.conv3 = conv3x3(outputs, outputs)
            self.norm3 = _shift_norm(outputs)
        for conv in self.children():
            if isinstance(conv, nn.Conv2d):
                nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        y = self.norm2(self.conv2(x))
        if hasattr(self, "conv3"):
            y = self.norm3(self.conv3(F.gelu(y)))
        return F.gelu(x + y if self.shortcut else y)


def _shift_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm that learns only the shift, with statistics that follow quickly: the runs are short."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


class FastResNet(nn.Module):
    """Three blocks behind a whitening layer, residual or not: the most accuracy for the least arithmetic on a CPU.

    The ideas are Jordan's (2024, arXiv:2404.00498): the first layer is set to whiten 2x2 patches of the training
    pictures and stays as it is, convolutions start as the identity, pooling is early. Input float [N, 3, H, W],
    normalised, of any size from 16 up; output logits float [N, classes].

    Args:
        classes: number of classes.
        widths: channels of the three blocks.
        convolutions: in each block.
        shortcut: around the convolutions of each block that come after its pooling.
        whiten_bias: whether the first layer has a bias, which muon trains at the beginning of a run.
    """

    PATCH = 2
    FILTERS = 2 * 3 * PATCH**2  # every whitening direction and its negative

    @validate_call
    def __init__(
        self,
        classes: int,
        widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 256, 256),
        convolutions: Literal[2, 3] = 3,
        shortcut: bool = True,
        whiten_bias: bool = False,
    ) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, self.FILTERS, self.PATCH, bias=whiten_bias)
        self.whiten.weight.requires_grad_(False)
        inputs = (self.FILTERS, *widths[:-1])
        sizes = zip(inputs, widths, strict=True)
        self.blocks = nn.Sequential(*(FastBlock(i, o, convolutions, shortcut) for i, o in sizes))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        # A head of unit weights behind a fixed scale: its learning rate then does not depend on the width.
        nn.init.normal_(self.head.weight)

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the first layer to whiten the patches of normalised training pictures, float [N, 3, H, W]."""
        patches = F.unfold(images, self.PATCH).double()
        covariance = (patches @ patches.mT).mean(0) / patches.shape[2]
        values, vectors = torch.linalg.eigh(covariance.cpu())  # of twelve numbers squared: no work for a GPU
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, 3, self.PATCH, self.PATCH).flip(0)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.gelu(self.whiten(x))).amax((2, 3))
        return self.head(features) / features.shape[1]  # type: ignore[no-any-return]


def _cifar(blocks: int) -> dict[str, Any]:
    """Table 6 of the paper: three stages, 6 x blocks + 2 layers."""
    return {"block": "basic", "blocks": (blocks,) * 3, "width": 16, "shortcut": "pad"}


def _wide(blocks: int, widen: int) -> dict[str, Any]:
    """Table 1 of the Wide ResNet paper: three stages, 6 x blocks + 4 layers."""
    return {"block": "wide", "blocks": (blocks,) * 3, "width": 16, "widen": widen}


# `resnet` is the family itself, of any depth by its arguments; the others are its members with published names.
_MEMBERS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "resnet": {},
        "resnet18": {"block": "basic", "blocks": (2, 2, 2, 2)},
        "resnet34": {"block": "basic", "blocks": (3, 4, 6, 3)},
        "resnet50": {"block": "bottleneck", "blocks": (3, 4, 6, 3)},
        "resnet101": {"block": "bottleneck", "blocks": (3, 4, 23, 3)},
        "resnet152": {"block": "bottleneck", "blocks": (3, 8, 36, 3)},
        "resnet20": _cifar(3),
        "resnet32": _cifar(5),
        "resnet44": _cifar(7),
        "resnet56": _cifar(9),
        "resnet110": _cifar(18),
        "wide_resnet16_8": _wide(2, 8),
        "wide_resnet28_10": _wide(4, 10),
    }
)
_NAMED = frozenset({"block", "blocks", "widen"})  # what makes a published name; the rest may be changed

ARCHITECTURES = ("fast_resnet", *_MEMBERS)


_LEVELS: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=5)])


def build(architecture: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Make a network with fresh weights from torch's global random state.

    The argument `levels`, known to all of them, makes a `Pyramid` of so many scales out of it.

    Raises:
        InputError: the architecture or one of its arguments is unknown or of the wrong type.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"Unknown architecture {architecture!r}. Use one of {', '.join(ARCHITECTURES)}.")
    member = _MEMBERS.get(architecture, {})
    fixed = sorted(_NAMED & member.keys() & arguments.keys())
    if fixed:
        raise InputError(f"The name {architecture!r} stands for its {' and '.join(fixed)}. Use resnet to choose them.")
    own = member | {key: value for key, value in arguments.items() if key != "levels"}
    try:
        levels = _LEVELS.validate_python(arguments.get("levels", 1))
        network = (FastResNet if architecture == "fast_resnet" else ResNet)(classes, **own)
        return Pyramid.over(network, levels) if levels > 1 else network
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'levels'}: {e['msg']}" for e in error.errors())
        raise InputError(*(f"Architecture {architecture!r}, argument {problem}" for problem in problems)) from error
