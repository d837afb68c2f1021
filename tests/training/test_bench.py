"""The scripts that measure recipes and versions, with tiny settings."""

import subprocess
import sys
from pathlib import Path

from training import artifact

ROOT = Path(__file__).resolve().parents[2]
TINY = ("network.arguments={width=8}", "batch_size=16", "validation=20")


def bench(shapes: Path, models: Path, *arguments: str) -> list[str]:
    """The table's rows."""
    settings = [part for override in TINY for part in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "bench.train",
        "--data",
        str(shapes),
        "--models",
        str(models),
        *settings,
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("| ")][2:]


def test_each_recipe_gives_a_row_with_its_spread(shapes: Path, tmp_path: Path) -> None:
    (row,) = bench(shapes, tmp_path, "--seeds", "2", "--set", "epochs=1", "resnet20")
    manifests = [artifact.verify(artifact.folder(tmp_path, f"resnet20-{seed}", 1)) for seed in (0, 1)]
    accuracies = [100 * manifest.metrics["test"]["accuracy"] for manifest in manifests]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "resnet20"
    assert cells[1].startswith(f"{sum(accuracies) / 2:.2f} ± ")
    assert cells[4] == "2"
    assert cells[6] == f"`{manifests[0].data.sha256[:12]}`"


def test_a_run_out_of_time_says_how_far_it_came(shapes: Path, tmp_path: Path) -> None:
    (row,) = bench(shapes, tmp_path, "--minutes", "0.2", "--set", "epochs=100000", "resnet20")
    assert "ended " in row
    assert artifact.versions(tmp_path, "resnet20-0") == []


def test_a_version_answers_as_well_on_every_engine_as_its_manifest_says(shapes: Path, tmp_path: Path) -> None:
    bench(shapes, tmp_path, "--set", "epochs=1", "resnet20")
    recorded = artifact.read_manifest(artifact.folder(tmp_path, "resnet20-0", 1)).metrics["test"]
    command = [sys.executable, "-m", "bench.engines", "resnet20-0@1", "--models", str(tmp_path), "--data", str(shapes)]
    engines = ("torchscript-f32", "openvino-f32")
    command += [part for engine in engines for part in ("--engine", engine)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    told = f"{recorded['accuracy']:.2%} of {recorded['count']} test pictures, calibration error "
    told += f"{recorded['calibration_error']:.2%}"
    judged = [line for line in lines if "test pictures" in line]
    assert judged == [f"resnet20-0@1 {engine}: {told}" for engine in engines]
