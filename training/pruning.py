"""Structured pruning: the weakest filters are taken out, and what is left is an ordinary, narrower network.

The strength of a filter is the sum of its absolute weights (Li et al. 2017, arXiv:1608.08710). Where blocks add their
outputs up they share their channels: the strength of such a channel is summed over the filters that write to it, and it
goes from all of them at once.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import loop, resnet, run
from training.artifact import Manifest
from training.base import Base
from training.device import choose_device, memory_errors
from training.distillation import Teacher
from training.errors import InputError
from training.lineage import partition
from training.recipe import Freeze, Recipe
from training.resnet import BasicBlock, FastResNet, PadShortcut, ResNet
from training.sink import Sink

log = logging.getLogger(__name__)

_RATE = 0.3  # of the recipe's learning rates: enough to mend what is missing, too little to begin anew
_MULTIPLE = 8  # of channels, so that vector instructions are filled
_REFUSED = "This architecture cannot be pruned, only fast_resnet and ResNets of basic blocks can."


@dataclass(frozen=True)
class Pruning:
    """What to prune, and by how much.

    Attributes:
        model: `name`, meaning the version in production, or `name@version`.
        source: the data to fine-tune on, as on the command line; of the classes that the model knows.
        keep: share of the channels that is left, above 0 and below 1.
        epochs: of fine-tuning.
        device: auto, cpu or cuda.
    """

    model: str
    source: str
    models: Path
    keep: float = 0.7
    epochs: int = 8
    device: str = "auto"
    command: Sequence[str] = ()


def prune(task: Pruning, sinks: Sequence[Sink] = ()) -> Manifest:
    """Prune a version, fine-tune what is left by the version's own recipe, and write it as the next version.

    Raises:
        InputError: the arguments or the data are wrong, the architecture cannot be pruned, or the teacher that the
            version learned from is gone.
        TrainingError: the run failed.
    """
    if not 0 < task.keep < 1:
        raise InputError(f"--keep is the share of the channels that is left, above 0 and below 1, not {task.keep}.")
    base = Base.read(task.models, task.model)
    parent, wide = base.manifest, base.network()
    recipe = _recipe(base, wide, task)
    job, dataset, parts = run.prepare(
        run.Job(recipe, task.source, parent.name, task.models, parent.data.seed, task.device, task.command)
    )
    same = dataset.sha256 == parent.data.sha256
    parts = partition(parent, dataset) if same else parts
    if dataset.classes != parent.classes:
        raise InputError(f"{base} was trained on the classes {list(parent.classes)}; the source has others.")
    network = resnet.build(parent.architecture, len(parent.classes), recipe.network.arguments)
    shrink(wide, network)
    log.info("pruned from %d to %d weights", _weights(wide), _weights(network))
    network.prepare = None  # type: ignore[assignment]  # a first layer that was set from the data stays as it is
    device = choose_device(task.device)
    with memory_errors(f"Its recipe has batches of {job.recipe.batch_size}: prune it on a machine with more memory."):
        history = loop.train(
            network,
            parts,
            job.recipe,
            seed=job.seed,
            device=device,
            normalise=base.normalise,
            sinks=sinks,
            penalty=_teacher(base, job, device),
        )
    origin = run.Origin(parent=str(base), places=parent.data.places if same else None)
    return run.write(job, dataset, parts, network.cpu(), base.normalise, history, device, origin)


def shrink(network: nn.Module, narrower: nn.Module) -> None:
    """Fill a narrower network with the strongest filters of a wider one.

    The norms keep statistics that were measured with all filters in place: the result needs fine-tuning.

    Args:
        network: the wider one; it stays as it is.
        narrower: of the same architecture, with fewer channels.

    Raises:
        InputError: networks of this kind cannot be pruned.
    """
    if isinstance(network, FastResNet) and isinstance(narrower, FastResNet):
        _shrink_fast(network, narrower)
    elif isinstance(network, ResNet) and isinstance(narrower, ResNet) and isinstance(network.stages[0], BasicBlock):
        _shrink_resnet(network, narrower)
    else:
        raise InputError(_REFUSED)


def _shrink_fast(network: FastResNet, narrower: FastResNet) -> None:
    narrower.whiten.load_state_dict(network.whiten.state_dict())
    stream = torch.arange(network.FILTERS)
    for old, new in zip(network.blocks, narrower.blocks, strict=True):
        last = "conv3" if hasattr(old, "conv3") else "conv2"
        outputs = _strongest(_strength(old, "conv1") + _strength(old, last), _width(new, "conv1"))
        parts = [(1, outputs, stream), (2, outputs, outputs)]
        if last == "conv3":
            inner = _strongest(_strength(old, "conv2"), _width(new, "conv2"))
            parts[1:] = [(2, inner, outputs), (3, outputs, inner)]
        for number, kept, read in parts:
            _copy(old, new, f"conv{number}", kept, read)
            _copy(old, new, f"norm{number}", kept)
        stream = outputs
    _copy(network, narrower, "head", torch.arange(network.head.out_features), stream)
    # The network divides by the number of its features, which is less now.
    narrower.head.weight.data *= len(stream) / network.head.in_features


def _shrink_resnet(network: ResNet, narrower: ResNet) -> None:
    strengths = _stream_strengths(network)
    stream = _strongest(next(strengths), _width(narrower, "stem.0"))
    _copy(network, narrower, "stem.0", stream, torch.arange(3))
    _copy(network, narrower, "stem.1", stream)
    for old, new in zip(network.stages, narrower.stages, strict=True):
        read, shortcut = stream, old.get_submodule("shortcut")
        inner = _strongest(_strength(old, "conv1"), _width(new, "conv1"))
        if isinstance(shortcut, PadShortcut):
            stream = _around(read, next(strengths), _width(new, "conv2"))
        elif isinstance(shortcut, nn.Sequential):
            stream = _strongest(next(strengths), _width(new, "conv2"))
            _copy(old, new, "shortcut.0", stream, read)
            _copy(old, new, "shortcut.1", stream)
        _copy(old, new, "conv1", inner, read)
        _copy(old, new, "norm1", inner)
        _copy(old, new, "conv2", stream, inner)
        _copy(old, new, "norm2", stream)
    _copy(network, narrower, "head", torch.arange(network.head.out_features), stream)


def _stream_strengths(network: ResNet) -> Iterator[Tensor]:
    """Strength of each channel of the streams that blocks add to; a new one begins where the shape changes."""
    strength = _strength(network, "stem.0")
    for block in network.stages:
        shortcut = block.get_submodule("shortcut")
        if isinstance(shortcut, nn.Identity):
            strength = strength + _strength(block, "conv2")
            continue
        yield strength
        strength = _strength(block, "conv2")
        if isinstance(shortcut, nn.Sequential):
            strength = strength + _strength(block, "shortcut.0")
    yield strength


def _around(read: Tensor, strength: Tensor, width: int) -> Tensor:
    """The channels kept behind a `PadShortcut`: those that it passes on in the middle, the strongest on both sides."""
    half = len(strength) // 4  # a stage is twice as wide as the one before it
    side = (width - len(read)) // 2
    first, last = _strongest(strength[:half], side), _strongest(strength[-half:], side)
    return torch.cat([first, read + half, last + len(strength) - half])


def _strength(network: nn.Module, name: str) -> Tensor:
    """Sum of the absolute weights of each filter of a convolution."""
    return network.get_submodule(name).get_parameter("weight").detach().abs().sum((1, 2, 3))


def _strongest(strength: Tensor, count: int) -> Tensor:
    """Indices of the strongest channels, ascending."""
    return strength.topk(count).indices.sort().values


def _width(network: nn.Module, name: str) -> int:
    """Number of channels that a convolution puts out."""
    return len(network.get_submodule(name).get_parameter("weight"))


def _copy(network: nn.Module, narrower: nn.Module, name: str, outputs: Tensor, inputs: Tensor | None = None) -> None:
    """Copy the kept channels of a layer: a convolution, a linear layer, or a norm, which has no inputs of its own."""
    kept = {}
    for key, value in network.get_submodule(name).state_dict().items():
        rows = value[outputs] if value.ndim else value
        kept[key] = rows[:, inputs] if inputs is not None and value.ndim > 1 else rows
    narrower.get_submodule(name).load_state_dict(kept)


def _teacher(base: Base, job: run.Job, device: torch.device) -> Teacher | None:
    """The teacher that the base learned from, and the narrower network does too."""
    try:
        return run.load_teacher(job.models, job.recipe, base.manifest.classes, device, base.normalise)
    except InputError as error:
        raise InputError(
            f"{base} learned from a teacher, and the pruned version is to learn from it too. {error} Put it back into "
            f"{job.models}, or prune a version without a teacher."
        ) from error


def _recipe(base: Base, network: nn.Module, task: Pruning) -> Recipe:
    """The base's recipe for the narrower network, with lower rates.

    Nothing is frozen, even if it was for the base: what its norms measured does not hold for fewer channels.
    """
    recipe = base.recipe()
    rates = ("learning_rate", "head_learning_rate", "bias_learning_rate")
    lower = {key: _RATE * getattr(recipe.optimizer, key) for key in rates}
    arguments = {**base.manifest.arguments, **_narrower(network, task.keep)}
    if arguments == base.manifest.arguments:
        raise InputError(
            f"--keep {task.keep} takes nothing out of {base}: channels go {_MULTIPLE} at a time. Choose a smaller "
            "share, or leave the network as it is."
        )
    return recipe.model_copy(
        update={
            "epochs": task.epochs,
            "freeze": Freeze(),
            "optimizer": recipe.optimizer.model_copy(update=lower),
            "network": recipe.network.model_copy(update={"arguments": arguments}),
        }
    )


def _narrower(network: nn.Module, keep: float) -> dict[str, Any]:
    """The argument that says how wide a network is, for fewer channels.

    Raises:
        InputError: networks of this kind cannot be pruned.
    """

    def left(width: int) -> int:
        return min(width, max(_MULTIPLE, round(width * keep / _MULTIPLE) * _MULTIPLE))

    if isinstance(network, FastResNet):
        return {"widths": [left(_width(block, "conv1")) for block in network.blocks]}
    if isinstance(network, ResNet):
        return {"width": left(_width(network, "stem.0"))}
    raise InputError(_REFUSED)


def _weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
