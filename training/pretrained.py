"""Weights that torchvision's ResNets learned on ImageNet, for the networks here of the same shape."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import InputError, TrainingError
from training.normalisation import Normalisation
from training.resnet import ResNet

# What torchvision's weights were trained with.
NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DOWNLOADED = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_OUTSIDE = {"conv1": "stem.0", "bn1": "stem.1", "fc": "head"}  # torchvision's names of what lies outside the stages


def load(network: nn.Module, architecture: str, source: str) -> None:
    """Copy pretrained weights into a network of the same shape; a head for other classes stays as it is.

    Args:
        network: what `resnet.build` made.
        architecture: its name.
        source: `torchvision`, which downloads them, or a .pth or .safetensors file with torchvision's names.

    Raises:
        InputError: the network has no counterpart, the file cannot be read, or a part does not fit.
        TrainingError: the download failed.
    """
    if not isinstance(network, ResNet):
        raise InputError(f"There are no pretrained weights for {architecture}. Leave out network.pretrained.")
    state = _download(architecture) if source == "torchvision" else _read(Path(source))
    renamed = _renamed(state, network)
    own = network.state_dict()
    if "head.weight" in renamed and renamed["head.weight"].shape != own["head.weight"].shape:
        renamed |= {name: own[name] for name in ("head.weight", "head.bias")}
    # Files older than torch 0.4.1 do not count the batches, and nothing reads the count.
    counts = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counts, **renamed})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(
            f"The pretrained weights do not fit {architecture} ({first}). Weights of torchvision need the same depth, "
            "width 64 and network.arguments.stem='imagenet'."
        ) from error


def _download(architecture: str) -> Mapping[str, Tensor]:
    if architecture not in _DOWNLOADED:
        raise InputError(f"torchvision has no weights for {architecture}, only for {', '.join(_DOWNLOADED)}.")
    from torchvision.models import get_model_weights  # noqa: PLC0415 (seconds to import, and few runs need it)

    weights: Any = get_model_weights(architecture)
    try:
        return weights.DEFAULT.get_state_dict(progress=False, check_hash=True)  # type: ignore[no-any-return]
    except (OSError, RuntimeError) as error:  # torch says a wrong hash as a RuntimeError
        raise TrainingError(
            f"The weights of {architecture} cannot be downloaded ({error}). Fetch {weights.DEFAULT.url} elsewhere and "
            "name the file: network.pretrained=FILE."
        ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    """No code in the file is run (`weights_only`)."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(f"The pretrained weights {path} cannot be read ({error}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold weights by name, as the state_dict of a torchvision ResNet does.")
    return state


def _renamed(state: Mapping[str, Tensor], network: ResNet) -> dict[str, Tensor]:
    """The same tensors under the names of `ResNet`: `layer2.0.bn1.weight` becomes `stages.3.norm1.weight`."""
    firsts = [sum(network.blocks[:stage]) for stage in range(len(network.blocks))]
    return {_our_name(name, firsts): value for name, value in state.items()}


def _our_name(name: str, firsts: list[int]) -> str:
    inside = re.fullmatch(r"layer([1-9])\.(\d+)\.(.+)", name)
    if inside and int(inside[1]) <= len(firsts):
        rest = inside[3].replace("bn", "norm").replace("downsample", "shortcut")
        return f"stages.{firsts[int(inside[1]) - 1] + int(inside[2])}.{rest}"
    part, _, rest = name.partition(".")
    return f"{_OUTSIDE.get(part, part)}.{rest}"
