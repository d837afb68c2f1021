"""Engines for artifacts: the fastest that answers rightly, in spite of those that fail, and only once."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from app.serving import engines
from app.serving.blocks import BlockEngine
from app.serving.choice import Choice
from app.serving.engine import Kind
from app.serving.engines import Engines, Opened
from app.serving.tryout import Result
from tests import needs
from tests.app import artifacts
from tests.app.pictures import direct, png
from training import artifact, picture, probe
from training.errors import ArtifactError

CPU = torch.device("cpu")

# Opens argv[1] with the cache argv[2] as a service does, has it answer, and prints its kind.
OPEN = """
import logging, sys
from pathlib import Path
import numpy as np
from app.serving.engines import Engines
from training import artifact
logging.basicConfig(stream=sys.stderr, format="%(message)s", level="INFO")
folder, cache = map(Path, sys.argv[1:])
manifest = artifact.read_manifest(folder)
opened = Engines("auto", "cpu", threads=1, max_batch=8, cache=cache).open(folder, manifest)
opened.engine.predict(np.zeros((1, 3, manifest.input_size, manifest.input_size), np.uint8))
print(opened.kind)
"""


def opened(folder: Path, cache: Path | None, wanted: Kind | str = "auto") -> Opened:
    engines = Engines(wanted, "cpu", threads=1, max_batch=8, cache=cache)  # type: ignore[arg-type]
    return engines.open(folder, artifact.read_manifest(folder))


def replace_probe(folder: Path, probabilities: float) -> None:
    """Let an artifact's probe say that every class of every picture has this probability."""
    brought = probe.read(folder / probe.PROBE)
    probe.write(folder / probe.PROBE, probe.Probe(brought.pictures, np.full_like(brought.probabilities, probabilities)))


def test_choice_is_right_and_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1)
    with caplog.at_level("INFO"):
        first = opened(folder, tmp_path / "engines")
        (tried,) = [message for message in caplog.messages if "runs on" in message]
        assert f"{first.kind}: " in tried
        assert "; chosen" in tried
        caplog.clear()
        second = opened(folder, tmp_path / "engines")
        assert not [message for message in caplog.messages if "runs on" in message]
    assert (second.kind, second.curve) == (first.kind, first.curve)
    pictures = np.stack([picture.decode(png(seed), artifacts.SIZE) for seed in range(4)])
    expected = direct(folder, *map(png, range(4)))
    assert np.abs(second.engine.predict(pictures) - expected).max() < 0.05


def test_there_is_an_engine_for_two_batches_at_a_time(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1, architecture="resnet18", width=64)
    manifest = artifact.read_manifest(folder)
    found = Engines("openvino-f32", "cpu", threads=2, max_batch=64).open(folder, manifest)
    assert found.halves
    assert found.long
    pictures = np.stack([picture.decode(png(seed), artifacts.SIZE) for seed in range(8)])
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(found.halves.predict, [pictures[:4], pictures[4:]]))
    assert np.allclose(np.concatenate(answers), found.engine.predict(pictures), atol=1e-4)
    for apart in (False, True):
        one_by_one = Engines("openvino-f32", "cpu", threads=2, max_batch=1, apart=apart).open(folder, manifest)
        assert not one_by_one.long
        assert bool(one_by_one.halves) == apart


@pytest.mark.parametrize("threads", [1, 2])
def test_large_batches_are_computed_in_blocks(threads: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    needs.compiled()
    folder = artifacts.write(tmp_path, "cifar10", seed=1, architecture="resnet18", width=64)
    manifest = artifact.read_manifest(folder)
    engines = Engines("auto", "cpu", threads, max_batch=64, cache=tmp_path / "engines")
    with caplog.at_level("INFO"):
        found = engines.open(folder, manifest)
    (remembered,) = (tmp_path / "engines").glob("*/choice.json")
    remembers = Choice.model_validate_json(remembered.read_bytes())
    native = next(result for result in remembers.tried if result.kind == "native-f32")
    assert native.error is None
    assert native.distance < 1e-5
    told = [message for message in caplog.messages if f"in blocks of 16, with 1 of {threads} threads" in message]
    assert bool(told) == (found.kind != "native-f32")
    assert not any("Error" in message for message in told)
    blocks = remembers.blocks
    assert any("is used from" in message for message in told) == (blocks is not None)
    plans = list(remembered.parent.glob("plan.safetensors"))
    assert bool(plans) == (found.kind == "native-f32" or (blocks is not None and blocks.kind == "native-f32"))
    assert bool(found.halves) == (threads == 2)
    assert isinstance(found.engine, BlockEngine) == (blocks is not None and threads == 1)
    large = found.halves or found.engine
    assert isinstance(large, BlockEngine) == (blocks is not None)
    if blocks is not None:
        assert max(found.curve.seconds) == blocks.size
        assert found.curve.seconds[blocks.size] == blocks.seconds
    pictures = np.stack([picture.decode(png(seed), artifacts.SIZE) for seed in range(20)])
    assert np.abs(large.predict(pictures) - direct(folder, *map(png, range(20)))).max() < 0.02
    assert engines.open(folder, manifest).curve == found.curve


def test_engine_that_is_named_computes_large_batches_too(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1, architecture="resnet18", width=64)
    found = Engines("openvino-f32", "cpu", threads=1, max_batch=64).open(folder, artifact.read_manifest(folder))
    assert found.kind == "openvino-f32"
    assert not isinstance(found.engine, BlockEngine)


@pytest.mark.parametrize(
    ("openvino", "other", "chosen"),
    [
        ((0.010, 0.16), ("native-f32", 0.020, 0.08), "openvino-f32"),
        ((0.010, 0.16), ("native-f32", 0.011, 0.08), "native-f32"),
        ((0.010, 0.16), ("native-f32", 0.020, 0.20), "openvino-f32"),
        ((0.010, 0.08), ("torchscript-f32", 0.008, 0.20), "openvino-f32"),
        ((0.0003, 0.002), ("native-f32", 0.0004, 0.0016), "native-f32"),  # so cheap that no batch is large
    ],
)
def test_small_batches_are_computed_by_who_is_sooner_if_the_fastest_can_do_the_large_ones(
    openvino: tuple[float, float], other: tuple[Kind, float, float], chosen: Kind, tmp_path: Path
) -> None:
    needs.compiled()

    def result(kind: Kind, one: float, sixteen: float) -> Result:
        return Result(kind=kind, seconds={1: one, 16: sixteen})

    tried: dict[Kind, Result] = {"openvino-f32": result("openvino-f32", *openvino), other[0]: result(*other)}
    assert engines.suited(tmp_path, tried, max_batch=64, strict=True) == chosen


def test_engines_that_disagree_with_the_artifact_are_not_used(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1)
    replace_probe(folder, 0.5)
    with pytest.raises(ArtifactError, match=r"probabilities up to .* off"):
        opened(folder, tmp_path / "engines")


def test_engine_that_is_wanted_is_used_though_it_disagrees(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1)
    replace_probe(folder, 0.5)
    assert opened(folder, tmp_path / "engines", "openvino-f32").kind == "openvino-f32"


def test_integers_are_made_where_they_are_wanted(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1)
    assert opened(folder, tmp_path / "engines", "openvino-int8").kind == "openvino-int8"


def test_artifact_without_probe_is_tried_on_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = artifacts.write(tmp_path, "cifar10", seed=1, probed=False)
    assert opened(folder, None).curve.rate > 0
    assert any("compared on noise" in message for message in caplog.messages)
    with pytest.raises(ArtifactError, match="brings no probe"):
        opened(folder, None, "openvino-int8")


def test_choice_without_an_engine_that_could_not_be_written_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needs.compiled()
    folder = artifacts.write(tmp_path, "cifar10", seed=1)
    engines = Engines("auto", "cpu", threads=1, max_batch=8, cache=tmp_path / "engines")
    remembered = tmp_path / "engines" / engines._name(artifact.read_manifest(folder)) / "choice.json"
    in_the_way = remembered.with_name("plan.partial")
    in_the_way.mkdir(parents=True)
    assert opened(folder, tmp_path / "engines").kind != "native-f32"
    assert any("native-f32 failed, and may not the next time" in message for message in caplog.messages)
    assert not remembered.exists()
    in_the_way.rmdir()
    opened(folder, tmp_path / "engines")
    assert remembered.exists()


@pytest.mark.parametrize(("wanted", "network"), [("openvino-f32", "*.bin"), ("native-f32", "plan.safetensors")])
def test_what_was_converted_and_got_lost_is_made_anew(
    wanted: Kind, network: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needs.compiled()
    folder = artifacts.write(tmp_path, "cifar10", seed=1)
    opened(folder, tmp_path / "engines", wanted)
    (converted,) = (tmp_path / "engines").glob(f"*/{network}")
    size = converted.stat().st_size
    converted.write_bytes(b"")
    again = opened(folder, tmp_path / "engines", wanted)
    assert any(f"{converted.parent}" in message and "is chosen anew" in message for message in caplog.messages)
    pictures = np.stack([picture.decode(png(seed), artifacts.SIZE) for seed in range(4)])
    assert np.abs(again.engine.predict(pictures) - direct(folder, *map(png, range(4)))).max() < 0.02
    assert converted.stat().st_size == size
    assert converted.with_name("choice.json").exists()


def test_full_disk_costs_only_the_memory(tmp_path: Path) -> None:
    folder, engines = artifacts.write(tmp_path, "cifar10", seed=1), tmp_path / "full" / "engines"
    engines.parent.mkdir()
    mount = mounting()
    script = """
        set -e
        mount -t tmpfs -o size=2m none "$1" && mkdir "$1/engines"
        cat /dev/zero > "$1/fill" 2> /dev/null || true
        "$2" -B -c "$3" "$4" "$1/engines" && find "$1/engines" -name choice.json
    """
    command = [*mount, "sh", "-c", script, "sh", str(engines.parent), sys.executable, OPEN, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(found.stdout.split()) == 1  # the kind, and no file of a choice
    assert "engines has no room for the" in found.stderr
    assert "cannot be written" not in found.stderr


def mounting() -> list[str]:
    """How to run a program that may mount file systems, which nobody else sees."""
    command = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    probe = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a small disk: root, or user namespaces (sysctl kernel.unprivileged_userns_clone=1)")
    return command
