"""Networks that compute in 8-bit integers, simulated in floating point so that they run everywhere.

The scheme is that of Jacob et al. (2018, arXiv:1712.05877) as Nagel et al. (2021, arXiv:2106.08295) recommend it for
networks that are trained already: weights in int8, symmetric, with a scale for each output channel; activations in
uint8, affine, with one scale and zero point for each tensor. Weights use half of the range of int8, so that processors
without VNNI compute the same. The head stays in float: it is little work, and every answer goes through it. Values are
rounded where a runtime with integer kernels can make one of a convolution, what is added to its sums, the activation
and the rounding.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from training import evaluate
from training.device import CPU

_LEVELS = 255  # steps between the lowest and the highest uint8
# Of int8 weights. Without VNNI, x86-64 adds two products in 16 bits, and what does not fit is cut off (VPMADDUBSW):
# 2 x 255 x 63 does.
_LARGEST = 63
_FAINT = 1e-6  # a filter with only smaller weights is as good as none; their scale would be none for a runtime either
_SHARES = torch.linspace(0.3, 1, 36).tolist()  # of the range seen that are tried
_SAMPLE = 50_000  # values of a tensor that are remembered from each batch

# What gives out values that it was given, or zeros, which are exact in every range: rounding can as well be before it.
_PASSING: tuple[Any, ...] = (nn.Dropout, nn.Identity, nn.MaxPool2d, F.max_pool2d, F.pad, operator.getitem)
_POOLING: tuple[Any, ...] = (nn.MaxPool2d, F.max_pool2d)
_NOT_FITTED = 0.0


class Quantiser(nn.Module):
    """Rounds a tensor to the 256 levels `scale` x (0..255 - `zero_point`); until `fit`, passes it on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(_NOT_FITTED))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))
        self.scale: Tensor
        self.zero_point: Tensor
        self.register_load_state_dict_post_hook(lambda part, _: part._settle())  # type: ignore[no-untyped-call]
        self._settle()

    def _settle(self) -> None:
        # As numbers they become constants of an exported file, which keep their precision where weights are shortened.
        self._levels = float(self.scale), int(self.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = self._levels
        if scale == _NOT_FITTED:
            return x
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, _LEVELS)

    def fit(self, values: Tensor) -> None:
        """Choose the range with the least squared error on a sample of values, float [N].

        It reaches from the lowest value or 0 to the highest or 0, or less far: a few outliers may be cut off for
        the sake of finer steps. The ends are chosen one after the other.
        """
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        if low == high:
            high = 1.0

        def error(low: float, high: float) -> float:
            rounded = torch.fake_quantize_per_tensor_affine(values, *_affine(low, high), 0, _LEVELS)
            return float(F.mse_loss(rounded, values))

        high = min((share * high for share in _SHARES), key=lambda end: error(low, end))
        low = min((share * low for share in _SHARES), key=lambda end: error(end, high))
        scale, zero_point = _affine(low, high)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)
        self._settle()


def _affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of a range that holds 0."""
    scale = (high - low) / _LEVELS
    return scale, round(-low / scale)


class QuantisedConv2d(nn.Module):
    """A convolution with weights int8 [outputs, inputs, height, width], a float `scale` [outputs] and a float bias."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        scale = weight.abs().amax((1, 2, 3)).clamp(min=_FAINT) / _LARGEST
        self.register_buffer("weight", (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self._geometry: dict[str, Any] = {
            name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")
        }

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale.view(-1, 1, 1, 1), self.bias, **self._geometry)


def quantised(network: nn.Module) -> fx.GraphModule:
    """Make the network in 8-bit integers out of one in floating point; its quantisers still have to be fitted.

    A norm right behind a convolution becomes a part of it. All parts keep their names.

    Args:
        network: in evaluation mode, on the CPU; it is used up.
    """
    graph = fx.symbolic_trace(network)
    _fold_norms(graph)
    _place_quantisers(graph)
    for name, conv in list(graph.named_modules()):
        if isinstance(conv, nn.Conv2d):
            graph.set_submodule(name, QuantisedConv2d(conv))
    graph.recompile()
    return graph.eval()


@torch.inference_mode()
def fit(network: nn.Module, prepare: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Fit the quantisers of a network to what passes through them for some pictures, uint8 [N, 3, H, W]."""
    seen: dict[Quantiser, list[Tensor]] = {part: [] for part in network.modules() if isinstance(part, Quantiser)}
    generator = torch.Generator().manual_seed(0)

    def remember(part: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(part, Quantiser)  # noqa: S101
        values = arguments[0].flatten()
        sample = values[torch.randint(len(values), (_SAMPLE,), generator=generator)]
        seen[part] += [sample, values.amin(0, keepdim=True), values.amax(0, keepdim=True)]

    hooks = [part.register_forward_pre_hook(remember) for part in seen]
    evaluate.logits(network, prepare, images, CPU)
    for hook in hooks:
        hook.remove()
    for part, values in seen.items():
        part.fit(torch.cat(values))


def _fold_norms(graph: fx.GraphModule) -> None:
    """Make the norm behind each convolution a part of it."""
    folded = set()
    for node in list(graph.graph.nodes):
        source: Any = node.args[0] if node.args else None
        if _kind(graph, node) is not nn.BatchNorm2d or _kind(graph, source) is not nn.Conv2d or len(source.users) > 1:
            continue
        if node.target not in folded:  # what looks at several scales comes by the same parts several times
            folded.add(node.target)
            conv: Any = graph.get_submodule(source.target)
            norm: Any = graph.get_submodule(node.target)
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()


def _place_quantisers(graph: fx.GraphModule) -> None:
    """Round what convolutions, poolings and additions read.

    What comes right from a convolution is added as it is, but for one of two: a runtime does the sum before it rounds.
    """
    for node in list(graph.graph.nodes):
        kind = _kind(graph, node)
        if kind is nn.Conv2d or kind in _POOLING:
            _round(graph, node.args[0])
        elif kind is operator.add:
            fresh = [term for term in node.args if _kind(graph, term) is nn.Conv2d]
            for term in node.args:
                if term not in fresh[:1]:
                    _round(graph, term)


def _round(graph: fx.GraphModule, node: Any) -> None:
    """Put a quantiser behind a node, or before the values that it passes on, for all that read it."""
    while _kind(graph, node) in _PASSING:
        node = node.args[0]
    if _kind(graph, node) is Quantiser:
        return
    name = f"quantiser{sum(isinstance(part, Quantiser) for part in graph.children())}"
    graph.add_module(name, Quantiser())
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_module(name, (node,))
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


def _kind(graph: fx.GraphModule, node: Any) -> Any:
    """The type of the module that a node calls, or the function."""
    if not isinstance(node, fx.Node):
        return None
    return type(graph.get_submodule(str(node.target))) if node.op == "call_module" else node.target
