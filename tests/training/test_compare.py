"""The gate: two versions on the same pictures, which neither was trained on."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.encoding import encode
from tests.training.shapes import draw
from tests.training.sources import make
from training import compare, data, recipe, run
from training.artifact import Manifest
from training.digest import file_sha256
from training.finetune import FinetuneJob, finetune
from training.lineage import partition

OVERRIDES = ("network.arguments={width=8}", "batch_size=16", "optimizer.learning_rate=0.05", "validation=1000")
KINDS = ("disc", "cross")


def archive(folder: Path, numbers: range, extra: Mapping[str, bytes] | None = None) -> Path:
    folder.mkdir()
    drawn = {f"{kind}/{number}.png": encode(draw(kind, number)) for kind in KINDS for number in numbers}
    return make(folder, ".zip", {**drawn, **(extra or {})})


def train(models: Path, source: Path, epochs: int, size: int = 32) -> Manifest:
    chosen = recipe.load("resnet20", (*OVERRIDES, f"epochs={epochs}", f"network.input_size={size}"))
    return run.train(run.Job(chosen, str(source), "shapes", models, device="cpu"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures, the same ones and as many others, and those with a third class."""
    folder = tmp_path_factory.mktemp("sources")
    squares = {f"square/{number}.png": encode(draw("disc", number, 16).resize((32, 32))) for number in range(500, 520)}
    return {
        "few": archive(folder / "few", range(30)),
        "more": archive(folder / "more", range(60)),
        "third": archive(folder / "third", range(30), squares),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> tuple[Path, list[Manifest]]:
    """Versions 1 to 6: a good one, an untrained one, one of more data, one of three classes, and two more of more data:
    of smaller pictures, and fine-tuned from the first.
    """
    models = tmp_path_factory.mktemp("models")
    order = (("few", 8), ("few", 1), ("more", 8), ("third", 8))
    versions = [train(models, sources[source], epochs) for source, epochs in order]
    versions.append(train(models, sources["more"], 1, size=16))
    tuned = FinetuneJob("shapes@1", str(sources["more"]), "shapes", models, method="head", device="cpu")
    return models, [*versions, finetune(tuned)]


def gate(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path], candidate: int, production: int, kept: bool = True
) -> dict[str, Any]:
    """The comparison of two versions, with or without the data of the one in production."""
    models, manifests = trained
    archives: dict[str, Path | None] = {file_sha256(path): path for path in sources.values()}
    if not kept:
        archives[manifests[production - 1].data.sha256] = None
    return compare.compare(models, "shapes", candidate, production, archives)


def names(path: Path, manifest: Manifest) -> tuple[set[str], set[str]]:
    """A version's test pictures, and those that it was trained on or chosen by."""
    parts = partition(manifest, data.load(str(path), manifest.input_size))
    return set(parts.test.names), {*parts.train.names, *parts.validation.names}


def test_same_data_is_compared_on_its_own_test_split(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path]
) -> None:
    found = gate(trained, sources, candidate=2, production=1)
    tests = [manifest.metrics["test"] for manifest in trained[1]]
    assert found["pictures"] == {"candidate": tests[0]["count"]}
    for who, test in (("candidate", tests[1]), ("production", tests[0])):
        for figure in ("accuracy", "macro_f1", "calibration_error"):
            assert found["scores"][who][figure] == pytest.approx(test[figure], abs=1e-4)
    assert found["passed"] == (found["reasons"] == [])
    assert any("macro F1" in reason for reason in found["reasons"]) == (tests[1]["macro_f1"] < tests[0]["macro_f1"])


def test_no_picture_is_one_that_either_was_trained_on(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path]
) -> None:
    few, more = (names(sources[source], trained[1][number]) for source, number in (("few", 0), ("more", 2)))
    assert few[1] & more[0], "the splits of both sources overlap, or this tests nothing"
    pictures = gate(trained, sources, candidate=3, production=1)["pictures"]
    assert 0 < pictures["candidate"] <= len(more[0] - few[1])
    assert pictures["production"] == 0, "all of the smaller source is in the larger one"
    reverse = gate(trained, sources, candidate=1, production=3)["pictures"]
    assert 0 <= reverse["candidate"] <= len(few[0] - more[1])
    assert 0 < reverse["production"] <= len(more[0] - few[1] - few[0])


@pytest.mark.parametrize("other", [5, 6])
def test_nor_where_both_have_the_same_data_split_in_two_ways(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path], other: int
) -> None:
    plain, differing = trained[1][2], trained[1][other - 1]
    assert (plain.data.sha256, plain.data.seed) == (differing.data.sha256, differing.data.seed)
    of_plain, of_other = (names(sources["more"], manifest) for manifest in (plain, differing))
    for candidate, production, new, old in ((3, other, of_plain, of_other), (other, 3, of_other, of_plain)):
        assert new[0] & old[1], "one was trained on the other's test pictures, or this tests nothing"
        pictures = gate(trained, sources, candidate, production)["pictures"]
        assert 0 < pictures["candidate"] <= len(new[0] - old[1])
        assert pictures["production"] <= len(old[0] - new[1] - new[0])


def test_nor_one_that_a_version_before_it_was_trained_on(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path], tmp_path: Path
) -> None:
    models, versions = trained
    apart = archive(tmp_path / "apart", range(500, 520))
    production = finetune(FinetuneJob("shapes@1", str(apart), "shapes", models, method="head", device="cpu"))
    tested = names(sources["more"], versions[2])[0]
    known = tested & names(sources["few"], versions[0])[1]
    assert known, "or this tests nothing"
    comparison = gate(trained, {**sources, "apart": apart}, 3, production.version)
    assert 0 < comparison["pictures"]["candidate"] <= len(tested - known)


def test_a_class_that_a_version_does_not_know_is_a_wrong_answer(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path]
) -> None:
    with_third = gate(trained, sources, candidate=4, production=1)
    without = gate(trained, sources, candidate=1, production=4)
    assert with_third["scores"]["production"]["accuracy"] <= 1 - 3 / sum(with_third["pictures"].values())
    assert with_third["scores"]["production"]["old_class_accuracy"] > with_third["scores"]["production"]["accuracy"]
    assert without["scores"]["candidate"]["accuracy"] < 1
    assert without["scores"]["candidate"]["old_class_accuracy"] == without["scores"]["candidate"]["accuracy"]


def test_without_productions_data_its_stored_pictures_are_asked(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path))  # where decoded copies of the data would be found
    found = gate(trained, sources, candidate=3, production=1, kept=False)
    assert found["pictures"]["candidate"] > 0
    assert found["pictures"].keys() == {"candidate", "production"}


def test_data_that_cannot_be_read_any_more_is_as_good_as_gone(
    trained: tuple[Path, list[Manifest]], sources: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "few.zip").write_bytes(b"damaged since")
    models, versions = trained
    archives = {versions[2].data.sha256: sources["more"], versions[0].data.sha256: tmp_path / "few.zip"}
    found = compare.compare(models, "shapes", 3, 1, archives)
    assert found["pictures"] == gate(trained, sources, 3, 1, kept=False)["pictures"]
    assert "cannot be read any more" in caplog.text


def test_a_candidate_that_no_picture_can_judge_does_not_pass(tmp_path: Path) -> None:
    both = []
    for name, order in (("one", ("train", "test")), ("other", ("test", "train"))):
        numbers = dict(zip(order, (range(20), range(20, 30)), strict=True))
        files = {
            f"{part}/{kind}/{number}.png": encode(draw(kind, number))
            for part in order
            for kind in KINDS
            for number in numbers[part]
        }
        (tmp_path / name).mkdir()
        both.append(make(tmp_path / name, ".zip", files))
    manifests = [train(tmp_path / "models", source, 1) for source in both]
    archives = {manifest.data.sha256: source for manifest, source in zip(manifests, both, strict=True)}
    for kept in (archives, {**archives, manifests[0].data.sha256: None}):
        found = compare.compare(tmp_path / "models", "shapes", 2, 1, kept)
        assert found["pictures"] == {"candidate": 0, "production": 0}
        assert found["passed"] is False
        assert found["reasons"] == ["No held-out picture is left that neither version was trained on."]
        for scores in found["scores"].values():
            assert scores.keys() == GOOD.keys()
            assert [name for name, figure in scores.items() if figure is not None] == ["bytes"]
        assert json.loads(json.dumps(found)) == found


class Stalled:
    """A clock, and a script of 10 ms a run that stalls for a second in each run of a burst."""

    def __init__(self, burst: range) -> None:
        self._burst, self._runs, self._now = burst, 0, 0.0

    def __call__(self) -> float:
        return self._now

    def script(self, image: Tensor) -> Tensor:
        self._now += 1.01 if self._runs in self._burst else 0.01
        self._runs += 1
        return image


@pytest.mark.parametrize("start", [0, 5, 15, 18])
def test_a_burst_of_stalled_runs_makes_no_version_slower_than_itself(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Stalled(range(start, start + 12))
    monkeypatch.setattr(time, "perf_counter", clock)
    assert compare._latencies([(clock.script, torch.zeros(1))] * 2) == [10.0, 10.0]


GOOD = {
    "accuracy": 0.9,
    "macro_f1": 0.9,
    "calibration_error": 0.02,
    "old_class_accuracy": 0.9,
    "latency_ms": 10.0,
    "bytes": 1e6,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"macro_f1": 0.89}, "macro F1"),
        ({"calibration_error": 0.08}, "calibration error"),
        ({"old_class_accuracy": 0.87}, "production's classes"),
        ({"latency_ms": 150.0}, "150 ms"),
        ({"bytes": 2e8}, "200 MB"),
    ],
)
def test_what_fails_the_gate(changes: dict[str, float], said: str) -> None:
    (reason,) = compare._reasons({**GOOD, **changes}, GOOD)
    assert said in reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"macro_f1": 0.95, "calibration_error": 0.06, "old_class_accuracy": 0.885},
        {"latency_ms": 90.0, "bytes": 9e7},
    ],
)
def test_what_passes_the_gate(changes: dict[str, float]) -> None:
    assert compare._reasons({**GOOD, **changes}, GOOD) == []
