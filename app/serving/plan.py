"""The plan of a network: which layers compute which values, with what weights. Read off an artifact's TorchScript."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter
from safetensors import safe_open
from safetensors.numpy import save_file

from training.errors import ArtifactError

Array = NDArray[np.float32]


class Value(BaseModel):
    """What lies between two layers: side in pixels, and channels."""

    side: int
    channels: int


class Step(BaseModel):
    """One layer: a convolution, or the largest or the sum of the pixels in a window, by channel.

    Its sums, of a window multiplied by the weights, are shifted, added to the residual and activated. `source`,
    `target` and `residual` are numbers of values; the first value is the input.
    """

    kind: Literal["convolution", "maximum", "sum"]
    source: int
    target: int
    kernel: int
    stride: int = 1
    pad: int = 0
    residual: int | None = None
    activation: Literal["linear", "relu", "gelu"] = "linear"


@dataclass(frozen=True)
class Plan:
    """All steps, in order, and the values between them.

    Attributes:
        weights: of each step, float32 [outputs, inputs, kernel, kernel] of a convolution and [channels] of a window.
        shifts: of each step, float32 [outputs].
    """

    values: list[Value] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    shifts: list[Array] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as one file, which is whole or not there."""
        arrays = {
            f"{kind}{at}": array for kind in ("weights", "shifts") for at, array in enumerate(getattr(self, kind))
        }
        facts = {"values": _VALUES.dump_json(self.values).decode(), "steps": _STEPS.dump_json(self.steps).decode()}
        partial = path.with_suffix(".partial")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, facts)
        partial.replace(path)


_VALUES = TypeAdapter(list[Value])
_STEPS = TypeAdapter(list[Step])


def read(path: Path) -> Plan:
    """Read what `Plan.save` wrote.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        with safe_open(path, "np") as file:
            facts = file.metadata()
            values, steps = _VALUES.validate_json(facts["values"]), _STEPS.validate_json(facts["steps"])
            weights, shifts = (
                [file.get_tensor(f"{kind}{at}") for at in range(len(steps))] for kind in ("weights", "shifts")
            )
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read ({error}).") from error
    return Plan(values, steps, weights, shifts)


def trace(script: Path, size: int) -> Plan:
    """Read the plan of a network off the TorchScript of its artifact.

    Args:
        script: of `training.export.save_script`.
        size: of the pictures, in pixels.

    Raises:
        ArtifactError: it has a layer that there is no step for; the message names it.
    """
    import torch  # noqa: PLC0415 (not wanted in the service, where what was converted before is only loaded)

    from training import export  # noqa: PLC0415

    network = export.load_script(script, torch.device("cpu"))
    if not hasattr(network, "network"):
        raise ArtifactError(f"{script} has no named parts, so its network cannot be computed alone. Export it anew.")
    graph = export.frozen(network.network).graph
    _, pixels = graph.inputs()
    tracing = _Tracing(size, pixels.debugName())
    for node in graph.nodes():
        tracing.take(node)
    (answer,) = graph.outputs()
    return tracing.finished(answer.debugName())


class _Number(int):
    """The number of a value, as opposed to a constant."""


@dataclass(frozen=True)
class _Every:
    """Every so many-th pixel of a value, by axis."""

    value: _Number
    steps: Mapping[int, int]


class _Tracing:
    """Makes a plan of a graph, node by node. What a node computes is added to the last step where it can be.

    Args:
        size: of the pictures, in pixels.
        pixels: name of the input.
    """

    def __init__(self, size: int, pixels: str) -> None:
        self._plan = Plan([Value(side=size, channels=3)])
        self._known: dict[str, Any] = {pixels: _Number(0)}  # what the names in the graph stand for
        self._once: set[int] = set()  # values that one node uses, and no other

    def take(self, node: Any) -> None:
        """Add what a node computes."""
        kind, output = node.kind(), node.output()
        if kind == "prim::Constant":
            self._known[output.debugName()] = output.toIValue()
            return
        inputs = [self._known.get(value.debugName()) for value in node.inputs()]
        taken = _Number | _Every if kind in {"aten::slice", "aten::pad"} else _Number | float
        if kind not in _NODES or not isinstance(inputs[0], taken):
            raise ArtifactError(f"There is no step for {kind}.")
        found = self._known[output.debugName()] = _NODES[kind](self, *inputs)
        if isinstance(found, _Number):
            (self._once.add if len(output.uses()) == 1 else self._once.discard)(found)

    def finished(self, answer: str) -> Plan:
        """The whole plan, whose last value has to be the answer."""
        if self._known.get(answer) != len(self._plan.values) - 1 or self._plan.values[-1].side != 1:
            raise ArtifactError("The network does not end with its logits.")
        return self._plan

    def _add(self, step: Step, weights: Array, shift: Array) -> _Number:
        side = (self._plan.values[step.source].side + 2 * step.pad - step.kernel) // step.stride + 1
        self._plan.values.append(Value(side=side, channels=len(shift)))
        self._plan.steps.append(step)
        self._plan.weights.append(weights)
        self._plan.shifts.append(shift)
        return _Number(step.target)

    def _convolve(self, source: _Number, weights: Array, shift: Any, stride: int = 1, pad: int = 0) -> _Number:
        shifts = np.zeros(len(weights), np.float32) if shift is None else _numbers(shift)
        target, kernel = len(self._plan.values), weights.shape[2]
        step = Step(kind="convolution", source=source, target=target, kernel=kernel, stride=stride, pad=pad)
        return self._add(step, weights, shifts)

    def _pool(
        self, kind: Literal["maximum", "sum"], source: _Number, kernel: int = 1, stride: int = 1, pad: int = 0
    ) -> _Number:
        if not source:
            raise ArtifactError("There is no step for pictures that do not come to a convolution first.")
        channels = self._plan.values[source].channels
        target = len(self._plan.values)
        step = Step(kind=kind, source=source, target=target, kernel=kernel, stride=stride, pad=pad)
        return self._add(step, np.ones(channels, np.float32), np.zeros(channels, np.float32))

    def _open(self, value: Any) -> Step | None:
        """The step that made a value, if it is the last one and can be given more to do: nobody else sees the value."""
        step = self._plan.steps[-1] if self._plan.steps else None
        if not step or not isinstance(value, _Number) or step.target != value or value not in self._once:
            return None
        return step if step.activation == "linear" else None

    def _scale(self, factor: Array | float) -> None:
        self._plan.weights[-1] = (self._plan.weights[-1] * factor).astype(np.float32)
        self._plan.shifts[-1] = (self._plan.shifts[-1] * factor).astype(np.float32)

    def convolution(self, source: _Number, weights: Any, shift: Any, stride: Any, pad: Any, *rest: Any) -> _Number:
        dilation, transposed, _, groups, *_ = rest
        square = len({*stride}) == len({*pad}) == len({*weights.shape[2:]}) == 1
        if transposed or groups != 1 or {*dilation} != {1} or not square:
            raise ArtifactError("There is no step for a convolution that is in groups, dilated or not square.")
        return self._convolve(source, _numbers(weights), shift, stride[0], pad[0])

    def norm(self, source: _Number, *rest: Any) -> _Number:
        scale, shift, mean, variance, _, _, epsilon, _ = rest
        factor = _numbers(scale / (variance + epsilon).sqrt())
        step = self._open(source)
        if not step or step.kind == "convolution" or step.residual is not None:
            source = self._pool("sum", source)
        self._scale(factor)
        self._plan.shifts[-1] += _numbers(shift) - _numbers(mean) * factor
        return source

    def relu(self, source: _Number) -> _Number:
        return self._activate(source, "relu")

    def gelu(self, source: _Number, approximate: str) -> _Number:
        if approximate != "none":
            raise ArtifactError("There is no step for an approximate GELU.")
        return self._activate(source, "gelu")

    def _activate(self, source: _Number, activation: Literal["relu", "gelu"]) -> _Number:
        if not self._open(source):
            source = self._pool("sum", source)
        self._plan.steps[-1] = self._plan.steps[-1].model_copy(update={"activation": activation})
        return source

    def add(self, one: _Number, other: Any, times: float) -> _Number:
        for value, residual in ((one, other), (other, one)):
            step = self._open(value)
            whole = isinstance(residual, _Number) and residual != 0  # the pictures' channels are not filled up
            if step and step.residual is None and whole and times == 1:
                self._plan.steps[-1] = step.model_copy(update={"residual": int(residual)})
                return value
        raise ArtifactError("There is no step for a sum whose terms are used elsewhere as well.")

    def slice(self, source: _Number | _Every, axis: int, first: int, end: int, step: int) -> _Every:
        if first or end < sys.maxsize:
            raise ArtifactError("There is no step for a part of a picture.")
        taken = source if isinstance(source, _Every) else _Every(source, {})
        return taken if step == 1 else _Every(taken.value, {**taken.steps, axis: step})

    def padded(self, source: Any, sizes: list[int], mode: str, value: float | None) -> _Number:
        """New channels of zeros beside those of every so many-th pixel: a convolution that copies."""
        *around, before, after = sizes if len(sizes) == 6 else [1, 0, 0]
        steps = source.steps if isinstance(source, _Every) else {}
        if any(around) or mode != "constant" or value or {*steps} != {2, 3} or len({*steps.values()}) > 1:
            raise ArtifactError("There is no step for this padding.")
        channels = self._plan.values[source.value].channels
        copies = np.eye(before + channels + after, channels, -before, dtype=np.float32)
        return self._convolve(source.value, copies[..., None, None], None, steps[2])

    def maximum(self, source: _Number, kernel: list[int], stride: list[int], pad: list[int], *rest: Any) -> _Number:
        dilation, ceil = rest
        square = len({*kernel}) == len({*pad}) == 1 and len({*stride}) < 2
        if ceil or {*dilation} != {1} or not square:
            raise ArtifactError("There is no step for pooling that is dilated, not square or rounded up.")
        return self._pool("maximum", source, kernel[0], (stride or kernel)[0], pad[0])

    def mean(self, source: _Number, axes: list[int], *_: Any) -> _Number:
        found = self._whole("sum", source, axes)
        self._scale(1 / self._plan.values[source].side ** 2)
        return found

    def largest(self, source: _Number, axes: list[int], *_: Any) -> _Number:
        return self._whole("maximum", source, axes)

    def _whole(self, kind: Literal["maximum", "sum"], source: _Number, axes: list[int]) -> _Number:
        if {*axes} not in ({2, 3}, {-2, -1}):
            raise ArtifactError("There is no step for pooling of anything but whole pictures.")
        return self._pool(kind, source, self._plan.values[source].side)

    def linear(self, source: _Number, weights: Any, shift: Any) -> _Number:
        return self._convolve(source, _numbers(weights)[..., None, None], shift)

    def length(self, source: _Number, axis: int) -> float:
        if axis != 1:
            raise ArtifactError("There is no step for the size of a picture.")
        return float(self._plan.values[source].channels)

    def same(self, source: float) -> float:
        return source

    def divide(self, source: _Number, by: Any) -> _Number:
        step = self._open(source)
        if not step or step.residual is not None or not isinstance(by, float):
            raise ArtifactError("There is no step for this division.")
        self._scale(1 / by)
        return source


_NODES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "aten::_convolution": _Tracing.convolution,
        "aten::batch_norm": _Tracing.norm,
        "aten::relu": _Tracing.relu,
        "aten::relu_": _Tracing.relu,
        "aten::gelu": _Tracing.gelu,
        "aten::add": _Tracing.add,
        "aten::slice": _Tracing.slice,
        "aten::pad": _Tracing.padded,
        "aten::max_pool2d": _Tracing.maximum,
        "aten::mean": _Tracing.mean,
        "aten::amax": _Tracing.largest,
        "aten::linear": _Tracing.linear,
        "aten::size": _Tracing.length,
        "prim::NumToTensor": _Tracing.same,
        "aten::div": _Tracing.divide,
    }
)


def _numbers(tensor: Any) -> Array:
    found: Array = tensor.detach().float().numpy()
    return found
