"""Canaries on disk: started, replaced, ended, and never revived."""

from pathlib import Path

import pytest

from app import audit, canary, promotion
from app.errors import ConflictError, UnknownCanaryError, UnknownModelError, UnusableVersionError
from tests.app import artifacts
from tests.app.test_audit import lines
from training import artifact
from training.artifact import Aliases


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary")
    for seed in range(4):
        artifacts.write(folder, "pets", seed, promote=False)
    artifacts.change_a_byte(folder / "pets" / "4" / artifact.WEIGHTS)
    return folder


@pytest.fixture
def models(shared: Path) -> Path:
    """Four versions, the fourth damaged; the first is in production, and none is on trial."""
    artifact.write_aliases(shared, "pets", Aliases(production=1, history=(1,)))
    (shared / "pets" / artifact.CANARY).unlink(missing_ok=True)
    return shared


def start(models: Path, data: Path, version: int, percent: float | None = 5) -> canary.Canary:
    return canary.start(models, data, "pets", version, percent, 2, "me")


def changes(data: Path) -> list[tuple[object, ...]]:
    return [(line["what"], line["from"], line["to"]) for line in lines(data)]


def test_start_and_stop(models: Path, tmp_path: Path) -> None:
    assert canary.running(models, "pets") is None
    started = start(models, tmp_path, 2)
    assert canary.running(models, "pets") == started
    assert (started.version, started.base, started.percent) == (2, 1, 5)
    stopped = canary.stop(models, tmp_path, "pets", "you", "enough seen")
    assert canary.running(models, "pets") is None
    assert canary.read(models, "pets") == stopped
    assert (stopped.id, stopped.reason) == (started.id, "enough seen")
    assert canary.stop(models, tmp_path, "pets", "you", "once more") == stopped
    assert changes(tmp_path) == [("canary", 1, 2), ("canary end", 2, 1)]
    assert [line["who"] for line in lines(tmp_path)] == ["me", "you"]
    assert lines(tmp_path)[1]["reason"] == "enough seen"


def test_new_trial_takes_the_place_of_the_old_one(models: Path, tmp_path: Path) -> None:
    first = start(models, tmp_path, 2)
    second = start(models, tmp_path, 2, percent=50)
    shadow = start(models, tmp_path, 3, percent=None)
    assert len({first.id, second.id, shadow.id}) == 3
    assert canary.running(models, "pets") == shadow
    assert [what for what, _, _ in changes(tmp_path)] == ["canary", "canary end", "canary", "canary end", "shadow"]


def test_only_the_trial_that_is_meant_is_stopped(models: Path, tmp_path: Path) -> None:
    first = start(models, tmp_path, 2)
    second = start(models, tmp_path, 3)
    assert canary.stop(models, tmp_path, "pets", "refit", "failed", first.id) == second
    assert canary.running(models, "pets") == second


def test_promotion_ends_it_for_good(models: Path, tmp_path: Path) -> None:
    start(models, tmp_path, 2)
    promotion.promote(models, tmp_path, "pets", 2, "me")
    assert canary.running(models, "pets") is None
    promotion.rollback(models, tmp_path, "pets", "me")
    assert canary.running(models, "pets") is None
    ended = canary.read(models, "pets")
    assert ended
    assert ended.reason == "version 2 was put into production"
    assert [what for what, _, _ in changes(tmp_path)] == ["canary", "promote", "canary end", "rollback"]


def test_trial_whose_base_is_gone_has_ended_whatever_its_file_says(models: Path, tmp_path: Path) -> None:
    start(models, tmp_path, 2)
    artifact.write_aliases(models, "pets", Aliases(production=3, history=(1, 3)))
    assert canary.running(models, "pets") is None


@pytest.mark.parametrize(
    ("name", "version", "error", "said"),
    [
        ("pets", 1, ConflictError, "Version 1 of pets is in production. Name another one"),
        ("pets", 4, UnusableVersionError, "was changed after it was written"),
        ("pets", 9, UnknownModelError, "no version 9"),
        ("ship", 1, UnknownModelError, "no model 'ship'"),
    ],
)
def test_what_cannot_be_tried(
    models: Path, tmp_path: Path, name: str, version: int, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        canary.start(models, tmp_path, name, version, 5, 2, "me")
    assert not (tmp_path / audit.FILE).exists()


def test_nothing_in_production_to_compare_with(models: Path, tmp_path: Path) -> None:
    (models / "pets" / artifact.ALIASES).unlink()
    with pytest.raises(UnknownModelError, match="No version of the model 'pets' is in production"):
        start(models, tmp_path, 2)


def test_no_trial_to_stop(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownCanaryError, match="No version of pets was ever on trial"):
        canary.stop(models, tmp_path, "pets", "me", "why not")


def test_unreadable_file(models: Path, tmp_path: Path) -> None:
    (models / "pets" / artifact.CANARY).write_text("{")
    with pytest.raises(ConflictError, match="Remove it, or start a trial anew"):
        canary.read(models, "pets")
    promotion.promote(models, tmp_path, "pets", 2, "me")  # is not kept from its work
    start(models, tmp_path, 3)
    assert canary.running(models, "pets")
