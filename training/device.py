"""What torch computes on, and with how many threads."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training import machine
from training.errors import InputError, TrainingError

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

# Measuring takes 1.1 s for a network of seven convolutions and saves it 4 % of steps of 9 ms, on an NVIDIA H200. Larger
# networks get the time back sooner.
_WORTH_MEASURING = 5000


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: the named device is unknown or not present.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise InputError(f"Unknown device {name!r}. Use auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("No CUDA device is usable here. Choose the device cpu, or auto to take what there is.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def tune_for_training(device: torch.device) -> None:
    """Let float32 products on CUDA use TF32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def choose_algorithms(device: torch.device, steps: int) -> None:
    """Let cuDNN measure its algorithms if a run of so many steps gets the time back; shapes hardly change in a run."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = steps >= _WORTH_MEASURING


def fast_bfloat16(device: torch.device) -> bool:
    """Whether training in bfloat16 is faster there than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return machine.fast_bfloat16()


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute float32 on CUDA in all of its bits inside the block, not in TF32, and measure no algorithms for it."""
    if device.type != "cuda":
        yield
        return
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


def describe(device: torch.device) -> str:
    """Name the hardware for a report: `2 x AMD EPYC`, or `NVIDIA H200`. No host name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return machine.describe()


def set_threads(processes: int = 1, most: int = 0) -> int:
    """Give torch this process's share of the processors, and say so in the log.

    Args:
        processes: how many processes share the processors.
        most: never more than this; 0 for no such limit.

    Returns:
        The number of threads that one torch operation now uses.
    """
    threads = machine.share(processes)
    threads = min(threads, most or threads)
    torch.set_num_threads(threads)
    log.info("%d threads for torch: %d processors, shared by %d", threads, machine.processors(), processes)
    return threads


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use a single thread inside the block: for small matrices several ones mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Say that memory ran out, and what to do about it, where torch says so in ways of its own.

    Raises:
        TrainingError: memory ran out inside the block, on a device or on the host.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # For a device torch has an exception of its own, for the host only this word in the message.
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        raise TrainingError(f"Memory ran out. {advice}") from error
