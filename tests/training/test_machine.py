"""What the machine gives, read and set."""

import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import machine

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_processors_are_those_that_there_are(every_processor: None) -> None:
    assert 1 <= machine.processors() <= (os.cpu_count() or 1)


@needs_affinity
def test_affinity_limits_the_processors() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from training import machine; "
    assert run(code + "print(machine.processors(), machine.divide())") == "1 Shares(engine=1, decode=2)"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 2),  # one and a half keep two busy
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "", "cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({}, math.inf),
    ],
)
def test_cgroup_quota_limits_the_processors(
    every_processor: None, tmp_path: Path, files: dict[str, str], quota: float
) -> None:
    unlimited = machine.processors(tmp_path / "nothing")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.processors(tmp_path) == min(unlimited, quota)


@needs_glibc
def test_freed_memory_is_kept() -> None:
    code = """
from pathlib import Path
import torch
from training.machine import keep_freed_memory
{before}
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
big = torch.ones(50_000_000)
high = resident()
del big
print((high - resident()) // 1_000_000)
"""
    handed_back, kept = (int(run(code.format(before=before))) for before in ("", "keep_freed_memory()"))
    assert handed_back >= 190  # of 200 million bytes
    assert kept <= 10


def test_processors_are_divided_among_processes(every_processor: None) -> None:
    own = machine.processors()
    assert machine.divide() == machine.Shares(engine=own, decode=own + 1)
    assert machine.divide(10_000) == machine.Shares(engine=1, decode=2)


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="needs Linux on x86-64")
def test_instructions_for_bfloat16_are_those_that_torch_finds() -> None:
    able = torch.cpu.get_capabilities()
    assert machine.has_bfloat16() == bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@pytest.mark.parametrize(
    ("cpuinfo", "has", "fast"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16 amx_bf16 amx_tile\n", True, True),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16\n", True, False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx512f avx512_bf16\n", True, True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2\n", False, False),
        ("Features\t: asimd bf16\n", True, True),
        ("", False, False),
    ],
)
def test_bfloat16_is_fast_by_the_kind_of_processor(tmp_path: Path, cpuinfo: str, has: bool, fast: bool) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(cpuinfo)
    assert (machine.has_bfloat16(told), machine.fast_bfloat16(told)) == (has, fast)


def test_description_names_the_processor_and_no_host() -> None:
    found = machine.describe()
    assert re.fullmatch(rf"{machine.processors()} x \S.*", found)
    assert platform.node() not in found


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "500000000\n"}, 500_000_000),
        ({"memory/memory.limit_in_bytes": "600000000\n"}, 600_000_000),
        ({"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, None),
    ],
)
def test_memory_is_cut_by_the_cgroup(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    physical = machine.memory_bytes(tmp_path / "nowhere")
    assert machine.memory_bytes(tmp_path) == (expected or physical)


@needs_glibc
def test_freed_memory_is_returned() -> None:
    # Small blocks, some of which stay: the heap cannot simply shrink from its end.
    code = """
from training import machine
blocks = [bytes([number % 256]) * 4000 for number in range(50_000)]
kept = blocks[::1000]
full = machine.resident_bytes()
blocks.clear()
freed = machine.resident_bytes()
machine.return_freed_memory()
print(full - freed, full - machine.resident_bytes())
"""
    by_itself, returned = map(int, run(code).split())
    assert by_itself < 50e6
    assert returned > 150e6


@pytest.mark.skipif(sys.platform != "linux", reason="memory is only let go of on Linux")
def test_mapped_file_is_let_go_of_and_can_still_be_read(tmp_path: Path) -> None:
    (tmp_path / "of weights").mkdir()
    path = tmp_path / "of weights/network.bin"
    path.write_bytes(b"1" * 200_000_000)
    code = f"""
import mmap
from pathlib import Path
from training import machine
with open("{path}", "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
ones = mapped[:].count(b"1")
full = machine.resident_bytes()
machine.release_mapped(Path("{path}"))
print(full - machine.resident_bytes(), ones == mapped[:].count(b"1"))
"""
    released, same = run(code).split()
    assert int(released) > 150e6
    assert same == "True"
