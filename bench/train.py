"""Runs recipes as cold processes and prints a row of docs/results.md for each.

    python -m bench.train --device cpu --data cifar10                     # what `make bench-train` does
    python -m bench.train --device cuda --data cifar10 --minutes 10       # the GPU rows but for the slow ones
    python -m bench.train --device cuda --data cifar10 wide               # one of those

The data set is decoded before the clock starts; how long that took is printed too. A run that is not done when the time
is up is interrupted, and its row says how far it came.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev

from training import artifact, data, recipe, run
from training.artifact import Manifest
from training.device import choose_device, describe
from training.progress import clock

RECIPES = {"cpu": ("cpu-quick", "cpu-sprint", "cpu"), "cuda": ("sprint", "accurate", "resnet18", "resnet50")}
HEADER = (
    "| recipe | test accuracy | cold process | epochs alone | seeds | machine | data | date |\n" + "| --- " * 8 + "|"
)


@dataclass(frozen=True)
class Outcome:
    """One run: its artifact, or else how far it came.

    Attributes:
        seconds: from the start of the process to the verified artifact, or to the end of a run that has none.
    """

    seconds: float
    manifest: Manifest | None
    came_to: str = ""


def main() -> None:
    """Run what the command line asks for."""
    asked = _arguments()
    ends = time.monotonic() + 60 * asked.minutes
    chosen = asked.recipes or RECIPES[asked.device]
    started = time.perf_counter()
    sizes = {recipe.load(name, asked.set).network.input_size for name in chosen}
    (digest,) = {data.load(asked.data, size).sha256 for size in sizes}  # of the source, whatever the size
    _say(f"decoding the data: {time.perf_counter() - started:.1f} s\n\n{HEADER}")
    for name in chosen:
        outcomes = [_train(name, seed, asked, ends) for seed in range(asked.seeds)]
        _say(_row(name, outcomes, describe(choose_device(asked.device)), digest[:12]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=RECIPES, default="cpu")
    parser.add_argument("--data", default="cifar10", help="a source, as `python -m training train` takes it")
    parser.add_argument("--models", type=Path, default=Path("build/bench-models"), help="where the artifacts go")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs of each recipe")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for everything together")
    parser.add_argument("--set", action="append", default=[], help="change a value of every recipe")
    parser.add_argument("recipes", nargs="*", help=f"by default {RECIPES}")
    return parser.parse_args()


def _train(name: str, seed: int, asked: argparse.Namespace, ends: float) -> Outcome:
    model = f"{name}-{seed}"
    command = [sys.executable, "-m", "training", "train", "--recipe", name, "--data", asked.data, "--name", model]
    command += ["--models", str(asked.models), "--device", asked.device, "--seed", str(seed)]
    command += [part for override in asked.set for part in ("--set", override)]
    started = time.time()
    with subprocess.Popen(command) as process:  # noqa: S603  our own command line
        try:
            process.wait(timeout=None if ends == float("inf") else max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
    if process.returncode:
        return Outcome(time.time() - started, None, _came_to(asked.models, model))
    folder = artifact.folder(asked.models, model, artifact.versions(asked.models, model)[-1])
    written = (folder / artifact.MANIFEST).stat().st_mtime  # the last file of an artifact
    return Outcome(written - started, artifact.verify(folder))


def _came_to(models: Path, model: str) -> str:
    log = run.runs_folder(models, model) / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    if not lines:
        return "ended before its first epoch"
    last = json.loads(lines[-1])
    return (
        f"ended after {last['epoch']} of {last['epochs']} epochs at {last['val_accuracy']:.2%} of the validation split"
    )


def _row(name: str, outcomes: Sequence[Outcome], machine: str, data_hash: str) -> str:
    done = [outcome.manifest for outcome in outcomes if outcome.manifest]
    shares = [100 * float(manifest.metrics["test"]["accuracy"]) for manifest in done]
    spread = f" ± {stdev(shares):.2f}" if len(shares) > 1 else ""
    accuracy = f"{mean(shares):.2f}{spread} %" if shares else ""
    unfinished = [outcome.came_to for outcome in outcomes if not outcome.manifest]
    cells = (
        name,
        "; ".join([accuracy] * bool(shares) + unfinished),
        _time(mean(outcome.seconds for outcome in outcomes)),
        _time(mean(manifest.training_seconds for manifest in done)) if done else "",
        str(len(outcomes)),
        machine,
        f"`{data_hash}`",
        f"{datetime.now(UTC):%Y-%m-%d}",
    )
    return f"| {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    return clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
