"""CUDA graphs of a network: all its kernels are launched at once, so that a GPU need not wait for the host."""

import warnings

import torch
from torch import Tensor, nn


class Graphed:
    """A network in training, its forward and backward pass captured once for each shape of batch.

    Unlike `torch.compile`, capturing takes about a second, and the arithmetic stays what it was. The gradients that a
    backward pass leaves are overwritten by the next one, so they cannot be accumulated; what is trained and what is in
    evaluation mode has to stay as it is.

    Args:
        network: on CUDA, with each layer in the mode that it is trained in whenever this is called.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._captured: dict[torch.Size, nn.Module] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of pictures float [N, 3, H, W]; they hold until the next call."""
        self.capture(images)
        return self._captured[images.shape](images)  # type: ignore[no-any-return]

    def capture(self, sample: Tensor) -> None:
        """Be ready for batches of this shape: run one a few times, without a trace in statistics and random numbers."""
        if sample.shape in self._captured:
            return
        before = [buffer.clone() for buffer in self._network.buffers()]
        holder = nn.Sequential(self._network)  # whose own `forward` is replaced; validation calls the network's
        precision = torch.get_autocast_dtype("cuda")
        enabled = torch.is_autocast_enabled("cuda")
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng([sample.device]),
            torch.autocast("cuda", precision, enabled=enabled, cache_enabled=False),
        ):
            # That its own rehearsal ran on another stream; no gradient is accumulated here.
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
            torch.cuda.make_graphed_callables(holder, (sample.clone(),))
        for buffer, value in zip(self._network.buffers(), before, strict=True):
            buffer.copy_(value)
        self._captured[sample.shape] = holder
