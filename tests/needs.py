"""What some tests need of the machine: programs and data that not every machine has.

A test that lacks something is skipped; it fails where `REFIT_REQUIRE` names it, as `.ci/run` does.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from app.serving import native
from tests import processors
from training import compiled as modules

if TYPE_CHECKING:
    import torch

_ARCHIVE = Path(__file__).resolve().parents[2] / "shared" / "cifar10" / "cifar10-jpeg.tar.xz"


def cifar10() -> Path:
    """The 60,000 pictures of CIFAR-10 as an archive, beside the checkout."""
    return _ARCHIVE if _ARCHIVE.exists() else _lacking("cifar10", f"the archive {_ARCHIVE}")


def chromium() -> Path:
    """A Chromium, or Chrome."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, found), None)
    return Path(program) if program else _lacking("chromium", "Chromium: apt-get install chromium")


def postgresql() -> Path:
    """The folder of PostgreSQL's newest server; Debian puts none of its programs but the clients on the path."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found or not (found[-1] / "pg_ctl").exists():
        _lacking("postgresql", "PostgreSQL: apt-get install postgresql")
    return found[-1]


def two_processors() -> set[int]:
    """Two processors that a process can choose from."""
    found = sorted(processors.ALL)[:2]
    return set(found) if len(found) == 2 else _lacking("processors", "two processors, and a system with affinity")


def compiled() -> None:
    """The modules that decode pictures and compute networks, which are built where there is a C compiler."""
    if not modules.AVAILABLE or not native.AVAILABLE:
        _lacking("compiler", "a C compiler before the package is installed: apt-get install gcc")


def cuda() -> "torch.device":
    """A GPU that torch computes on."""
    import torch  # noqa: PLC0415  it counts processors on import: not before `processors.keep_to_one`

    return torch.device("cuda") if torch.cuda.is_available() else _lacking("cuda", "a GPU with CUDA")


def _lacking(name: str, what: str) -> NoReturn:
    if name in os.environ.get("REFIT_REQUIRE", "").split():
        pytest.fail(f"needs {what} (REFIT_REQUIRE names {name})")
    pytest.skip(f"needs {what}")
