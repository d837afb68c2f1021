"""The networks: residual networks for pictures of 32x32 and more, and a small one that is fast on a CPU."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, validate_call
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import InputError
from training.pyramid import Pyramid


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1) and leaves the bias to the norm behind it."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int, pad_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, pad_shortcut)
        nn.init.zeros_(self.norm2.weight)  # each block starts as the identity (Goyal et al. 2017, arXiv:1706.02677)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PadShortcut(nn.Module):
    """The shortcut without weights: every second pixel, new channels zero (He et al. 2015, option A)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))


def _shortcut(inputs: int, outputs: int, stride: int, pad: bool) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if pad:
        return PadShortcut(outputs - inputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network with the 3x3 stem for small pictures.

    Input float [N, 3, H, W], normalised; output logits float [N, classes].

    Args:
        classes: number of classes.
        blocks: blocks in each stage; every stage after the first halves the size.
        widths: channels of each stage.
        pad_shortcut: shortcuts without weights, as the CIFAR networks of the paper have them.
    """

    def __init__(self, classes: int, blocks: Sequence[int], widths: Sequence[int], pad_shortcut: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
        stages: list[nn.Module] = []
        inputs = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                stages.append(BasicBlock(inputs, width, stride, pad_shortcut))
                inputs = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class FastBlock(nn.Module):
    """Convolution and pooling, then two convolutions with a shortcut: most work is done at the smaller size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs)
        self.norm1 = _shift_norm(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = _shift_norm(outputs)
        self.conv3 = conv3x3(outputs, outputs)
        self.norm3 = _shift_norm(outputs)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        y = F.gelu(self.norm2(self.conv2(x)))
        return F.gelu(x + self.norm3(self.conv3(y)))


def _shift_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm that learns only the shift, with statistics that follow quickly: the runs are short."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


class FastResNet(nn.Module):
    """Three residual blocks behind a whitening layer: the most accuracy for the least arithmetic on a CPU.

    The ideas are Jordan's (2024, arXiv:2404.00498): the first layer is set to whiten 2x2 patches of the training
    pictures and stays as it is, convolutions start as the identity, pooling is early. Input float [N, 3, H, W],
    normalised, of any size from 16 up; output logits float [N, classes].

    Args:
        classes: number of classes.
        widths: channels of the three blocks.
    """

    PATCH = 2
    FILTERS = 2 * 3 * PATCH**2  # every whitening direction and its negative

    def __init__(self, classes: int, widths: Sequence[int] = (64, 256, 256)) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, self.FILTERS, self.PATCH, bias=False)
        self.whiten.weight.requires_grad_(False)
        inputs = (self.FILTERS, *widths[:-1])
        self.blocks = nn.Sequential(*(FastBlock(i, o) for i, o in zip(inputs, widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        # A head of unit weights behind a fixed scale: its learning rate then does not depend on the width.
        nn.init.normal_(self.head.weight)

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the first layer to whiten the patches of normalised training pictures, float [N, 3, H, W]."""
        patches = F.unfold(images, self.PATCH).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, 3, self.PATCH, self.PATCH).flip(0)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.gelu(self.whiten(x))).amax((2, 3))
        return self.head(features) / features.shape[1]  # type: ignore[no-any-return]


@validate_call
def _fast(classes: int, widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 256, 256)) -> nn.Module:
    return FastResNet(classes, widths)


@validate_call
def _resnet18(classes: int, width: PositiveInt = 64) -> nn.Module:
    return ResNet(classes, (2, 2, 2, 2), (width, 2 * width, 4 * width, 8 * width))


@validate_call
def _resnet20(classes: int, width: PositiveInt = 16) -> nn.Module:
    return ResNet(classes, (3, 3, 3), (width, 2 * width, 4 * width), pad_shortcut=True)


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"fast_resnet": _fast, "resnet18": _resnet18, "resnet20": _resnet20}
)


_LEVELS: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=1, le=5)])


def build(architecture: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Make a network with fresh weights from torch's global random state.

    The argument `levels`, known to all of them, makes a `Pyramid` of so many scales out of it.

    Raises:
        InputError: the architecture or one of its arguments is unknown or of the wrong type.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"Unknown architecture {architecture!r}. Use one of {', '.join(ARCHITECTURES)}.")
    own = {key: value for key, value in arguments.items() if key != "levels"}
    try:
        levels = _LEVELS.validate_python(arguments.get("levels", 1))
        network = ARCHITECTURES[architecture](classes, **own)
        return Pyramid.over(network, levels) if levels > 1 else network
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'levels'}: {e['msg']}" for e in error.errors())
        raise InputError(*(f"Architecture {architecture!r}, argument {problem}" for problem in problems)) from error
