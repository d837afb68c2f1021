"""What the machine gives: processors, device, number format, memory allocator. Only this module sets them."""

import contextlib
import ctypes
import gc
import logging
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from training.errors import InputError, TrainingError

log = logging.getLogger(__name__)

# Names of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -3, -4, -8


@dataclass(frozen=True)
class Shares:
    """How one serving process divides its processors: threads that compute a batch, threads that decode pictures."""

    engine: int
    decode: int


def processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that this process may keep busy: its affinity, cut by the cgroup's quota (v2 or v1)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return allowed if quota == math.inf else max(1, min(allowed, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float:
    try:
        quota, period = Path(root, "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path(root, "cpu", "cpu.cfs_quota_us").read_text()
            period = Path(root, "cpu", "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    return math.inf if quota.strip() in {"max", "-1"} else int(quota) / int(period)


def set_threads(processes: int = 1, most: int = 0) -> int:
    """Give torch this process's share of the processors, and say so in the log.

    Args:
        processes: how many processes share the processors.
        most: never more than this; 0 for no such limit.

    Returns:
        The number of threads that one torch operation now uses.
    """
    available = processors()
    threads = max(1, available // processes)
    threads = min(threads, most or threads)
    torch.set_num_threads(threads)
    log.info("%d threads for torch: %d processors, shared by %d", threads, available, processes)
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


def divide(processes: int = 1) -> Shares:
    """Divide this process's share of the processors among engine and decoding, size torch's pool, and log why.

    Both get all of it: an engine computes at most one batch at a time and decoding waits while nothing was uploaded,
    so a fixed division would leave processors idle. The event loop needs little and comes first in the kernel's
    queue because it sleeps most of the time.

    Args:
        processes: how many serving processes share the processors.
    """
    threads = set_threads(processes)
    log.info("%d threads compute, %d threads decode pictures", threads, threads)
    return Shares(engine=threads, decode=threads)


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed instead of handing it back to the kernel after every training step.

    A step allocates and frees the same hundreds of megabytes of activations each time; by default glibc maps
    and unmaps them, and the page faults cost up to 40 % of the time of a step on a CPU. Elsewhere than on
    glibc nothing is changed.
    """
    _tell_malloc({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20})


def reuse_freed_memory() -> None:
    """Tell glibc to reuse what a request frees, up to 32 MB of it, and to keep few separate heaps.

    Uploads and decoded pictures are buffers of megabytes that come and go with every request; by default each of them
    is mapped and unmapped, at one page fault for every 4 kB. More than two heaps would hold freed memory that the
    others lack. Larger blocks, such as the weights of a model, still go back to the kernel when they are freed.
    """
    _tell_malloc({_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 32 << 20, _M_ARENA_MAX: 2})


def _tell_malloc(options: Mapping[int, int]) -> None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for name, value in options.items():
        libc.mallopt(name, value)


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
        raise TrainingError(f"Memory ran out. {advice} The last good checkpoint is kept.") from error


def return_freed_memory() -> None:
    """Hand freed memory back to the kernel, which glibc otherwise keeps. Elsewhere than on glibc nothing is done."""
    gc.collect()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory that this process takes now, in bytes; 0 where the kernel has no /proc to tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process may take: the machine's, cut by the cgroup's limit (v2 or v1)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or it says "max"
            limits.append(int((cgroup / file).read_text()))
    return min(limits)


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
    """Let cuDNN measure its algorithms, as shapes hardly change in a run, and float32 products on CUDA use TF32."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


@cache
def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware there: over twice the float32 rate where measured."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def describe(device: torch.device) -> str:
    """Name the hardware for a report: `2 x AMD EPYC`, or `NVIDIA H200`. No host name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processors()} x {_cpu_name()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
