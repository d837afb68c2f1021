"""The command line, in a process of its own, and what makes its runs short."""

import subprocess
import sys
from pathlib import Path

TINY = ("--recipe", "resnet20", "--set", "network.arguments={width=8}", "--set", "batch_size=16")
FAST = (*TINY, "--set", "validation=20", "--set", "optimizer.learning_rate=0.05", "--device", "cpu")
# What a resumed run has to take up again besides the weights: averages, random choices on the host, dropout.
METHODS = (
    "--set",
    "network.arguments={width=8, block_dropout=0.1}",
    *("--set", "average.decay=0.9", "--set", "augment.policy=trivial", "--set", "augment.mixup=0.2"),
)


def command(*arguments: str | Path) -> list[str]:
    """What starts `python -m training` with these arguments."""
    return [sys.executable, "-m", "training", *map(str, arguments)]


def training(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]
