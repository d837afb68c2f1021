"""What the machine gives: processors, number format, memory and its allocator, all without torch."""

import contextlib
import ctypes
import gc
import logging
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# Names of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -3, -4, -8
_MADV_DONTNEED = 4  # of madvise(2), from the kernel's mman-common.h

CPUINFO = Path("/proc/cpuinfo")


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


def share(processes: int) -> int:
    """Processors for each of several processes that share them; at least one."""
    return max(1, processors() // processes)


def divide(processes: int = 1) -> Shares:
    """Divide this process's share of the processors among engine and decoding, and log why.

    Both get all of it: what an engine computes at a time has all of them together, and decoding waits while nothing was
    uploaded, so a fixed division would leave processors idle. One thread more decodes, for what the others wait for
    Python's lock. The event loop needs little and comes first in the kernel's queue because it sleeps most of the time.

    Args:
        processes: how many serving processes share the processors.
    """
    threads = share(processes)
    log.info(
        "%d threads compute, %d decode pictures: %d processors, shared by %d",
        threads,
        threads + 1,
        processors(),
        processes,
    )
    return Shares(engine=threads, decode=threads + 1)


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


def return_freed_memory() -> None:
    """Hand freed memory back to the kernel, which glibc otherwise keeps. Elsewhere than on glibc nothing is done."""
    gc.collect()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def release_mapped(path: Path) -> None:
    """Let go of the memory with which a file is mapped into this process; what is needed again is read again.

    Elsewhere than on Linux nothing is done.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        if name != [str(path.resolve())]:
            continue
        start, end = (int(address, 16) for address in addresses.split("-"))
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED):
            log.warning("%s keeps its memory: madvise says %s", path, os.strerror(ctypes.get_errno()))


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


def has_nvidia_driver() -> bool:
    """Whether there may be a CUDA device, which only torch can tell for certain; `/dev/dxg` is WSL's."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def has_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has instructions that multiply bfloat16 numbers."""
    flags = _cpu_fact("flags", cpuinfo) or _cpu_fact("Features", cpuinfo)  # on x86, on ARM
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())


def fast_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether networks compute faster in bfloat16 than in float32, in training and in prediction.

    Products of 2048x2048 matrices run at more than twice the rate of float32 with AMX, and on AMD's processors with
    AVX512-BF16. Intel's without AMX, or whose AMX the virtual machine hides, multiply bfloat16 no faster than float32:
    products run at 0.7 of its rate there, and so do training steps and batches of predictions.
    """
    intel = _cpu_fact("vendor_id", cpuinfo) == "GenuineIntel"
    return has_bfloat16(cpuinfo) and (not intel or "amx_bf16" in _cpu_fact("flags", cpuinfo).split())


def describe() -> str:
    """Name the processors for a report: `2 x AMD EPYC`. No host name."""
    return f"{processors()} x {_cpu_fact('model name') or platform.processor() or platform.machine()}"


def _cpu_fact(name: str, cpuinfo: Path = CPUINFO) -> str:
    """What the kernel says of the first processor; empty if it does not."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), "")
