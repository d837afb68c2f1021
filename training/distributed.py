"""Several processes that train one network: `torchrun --nproc-per-node N -m training train ...`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from training.errors import InputError

_PATIENCE = timedelta(hours=2)  # the others wait while the first one tests and writes the artifact


@dataclass(frozen=True)
class Group:
    """The processes of one run. The first writes files and reports; all of them hold the same network.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch that all of them made alike; its length has to be a multiple of `size`."""
        return batch.chunk(self.size)[self.rank]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size == 1:
            return values
        return _added(values) / self.size

    def wait(self) -> None:
        """Go on when every process has come this far."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """What to call in training so that gradients are means over all processes; it shares the network's weights.

        Batch norms become ones that measure the whole batch, so that the number of processes changes no result.
        """
        if self.size == 1:
            return network
        if next(network.parameters()).is_cuda:
            return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(network))
        _share_norms(network)
        return DistributedDataParallel(network)


ALONE = Group()


def is_first() -> bool:
    """Whether this process is the one of its run that writes; known before `group_of` joins them."""
    return os.environ.get("RANK", "0") == "0"


def local_processes() -> int:
    """How many processes of a run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def group_of(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started; a process that it did not start is alone.

    Raises:
        InputError: there are more processes than CUDA devices here.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    if device.type == "cuda":
        number = int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise InputError(
                f"There are {local_processes()} processes for {torch.cuda.device_count()} CUDA devices. Start as many "
                "as there are devices: torchrun --nproc-per-node."
            )
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over all processes, which passes gradients back to every one of them."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return _added(values)

    @staticmethod
    def backward(_: Any, gradients: Tensor) -> Tensor:
        return _added(gradients)


def _added(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, all of one size; `nn.SyncBatchNorm` takes no CPU tensors."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        size = dist.get_world_size()
        values = x.float()
        moments: Tensor = _Sum.apply(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))
        mean, square = moments / size
        variance = (square - mean.square()).clamp(min=0)
        self._follow(mean.detach(), variance.detach(), size * x.numel() // x.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        out: Tensor = values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        self.num_batches_tracked.add_(1)


def _share_norms(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
                shared.__dict__ = norm.__dict__  # the same weights and statistics, and all else that was set
                setattr(parent, name, shared)
