"""Trying engines out on a real artifact, in this process."""

from pathlib import Path

import pytest

from app.serving import tryout
from app.serving.candidates import Place
from app.serving.engine import Kind
from app.serving.tryout import Result, Started
from tests.app import artifacts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version without probe pictures, which 8-bit integers cannot be calibrated with."""
    return artifacts.write(tmp_path_factory.mktemp("models"), "cifar10", seed=1, probed=False)


def test_engine_that_fails_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("openvino-int8", "torchscript-f32")
    place = Place(device="cpu", threads=1, cache=tmp_path)
    lines = list(tryout.run(tryout.Request(folder=folder, place=place, kinds=kinds, max_batch=2, tolerance=0.01)))
    failed, found = (line for line in lines if isinstance(line, Result))
    assert [line.started for line in lines if isinstance(line, Started)] == list(kinds)
    assert "brings no probe" in str(failed.error)
    assert (found.kind, found.error, found.same_label) == ("torchscript-f32", None, 1.0)
    assert found.distance < 0.001
    assert set(found.seconds) == {1, 2}


def test_two_engines_are_tried_however_long_that_takes(folder: Path, tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("torchscript-f32", "openvino-f32", "torchscript-bf16")
    place = Place(device="cpu", threads=1, cache=tmp_path)
    request = tryout.Request(folder=folder, place=place, kinds=kinds, max_batch=2, tolerance=0.01, seconds=0)
    *found, left_out = (line.error for line in tryout.run(request) if isinstance(line, Result))
    assert found == [None, None]
    assert "the time for it was over" in str(left_out)


def test_of_two_tries_each_batch_counts_at_its_best() -> None:
    first = Result(kind="openvino-f32", seconds={1: 0.1, 2: 0.3})
    again = Result(kind="openvino-f32", seconds={1: 0.2, 2: 0.2, 4: 0.4})
    assert first.at_best(again).seconds == {1: 0.1, 2: 0.2, 4: 0.4}
    failed = Result(kind="openvino-f32", error="out of memory")
    assert first.at_best(failed) == failed.at_best(first) == failed
