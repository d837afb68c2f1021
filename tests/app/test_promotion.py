"""Promotion and rollback: one step, one line in the audit log, or nothing at all."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import audit, canary, promotion
from app.errors import ConflictError, StorageError, UnknownModelError, UnusableVersionError
from tests.app import artifacts
from tests.app.test_audit import lines
from training import artifact
from training.artifact import Aliases

VERSIONS = 4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promotion")
    for seed in range(VERSIONS):
        artifacts.write(folder, "pets", seed, promote=False)
    artifacts.change_a_byte(folder / "pets" / "4" / artifact.WEIGHTS)
    return folder


@pytest.fixture
def models(shared: Path) -> Path:
    """Four versions, the fourth damaged; the first is in production."""
    artifact.write_aliases(shared, "pets", Aliases(production=1, history=(1,)))
    return shared


def changes(data: Path) -> list[tuple[object, ...]]:
    return [(line["what"], line["from"], line["to"]) for line in lines(data)]


def test_promote_and_roll_back(models: Path, tmp_path: Path) -> None:
    assert promotion.promote(models, tmp_path, "pets", 2, "me") == Aliases(production=2, history=(1, 2))
    assert promotion.promote(models, tmp_path, "pets", 3, "me") == Aliases(production=3, history=(1, 2, 3))
    assert promotion.earlier(models, "pets") == 2
    assert promotion.rollback(models, tmp_path, "pets", "you") == Aliases(production=2, history=(1, 2))
    assert promotion.rollback(models, tmp_path, "pets", "you") == Aliases(production=1, history=(1,))
    assert artifact.read_aliases(models, "pets") == Aliases(production=1, history=(1,))
    assert changes(tmp_path) == [("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2), ("rollback", 2, 1)]
    assert [line["who"] for line in lines(tmp_path)] == ["me", "me", "you", "you"]


def test_version_that_is_there_already(models: Path, tmp_path: Path) -> None:
    assert promotion.promote(models, tmp_path, "pets", 1, "me") == Aliases(production=1, history=(1,))
    assert not (tmp_path / audit.FILE).exists()


def test_first_promotion_of_a_model(models: Path, tmp_path: Path) -> None:
    (models / "pets" / artifact.ALIASES).unlink()
    assert promotion.promote(models, tmp_path, "pets", 3, "me") == Aliases(production=3, history=(3,))
    assert changes(tmp_path) == [("promote", None, 3)]


@pytest.mark.parametrize(
    ("name", "version", "error", "said"),
    [
        ("pets", 9, UnknownModelError, r"no version 9\. Versions: 1, 2, 3, 4"),
        ("ship", 1, UnknownModelError, r"no model 'ship'\. Models: pets"),
        ("..", 1, UnknownModelError, r"no model '\.\.'"),
        ("pets", 4, UnusableVersionError, "weights.safetensors was changed after it was written"),
    ],
)
def test_refusal_changes_nothing(
    models: Path, tmp_path: Path, name: str, version: int, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        promotion.promote(models, tmp_path, name, version, "me")
    assert artifact.read_aliases(models, "pets") == Aliases(production=1, history=(1,))
    assert not (tmp_path / audit.FILE).exists()


def test_number_of_a_version_on_trial_is_not_given_again(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = artifacts.write(tmp_path / "models", "pets", seed, promote=seed == 1)
    canary.start(tmp_path / "models", tmp_path, "pets", 2, 10, 2.0, "me")
    shutil.rmtree(folder)
    assert artifact.next_version(tmp_path / "models", "pets") == 3


def test_copy_of_a_version_is_not_promoted(tmp_path: Path) -> None:
    shutil.copytree(artifacts.write(tmp_path / "models", "pets", seed=1).parent, tmp_path / "models" / "copy")
    (tmp_path / "models" / "copy" / artifact.ALIASES).unlink()
    with pytest.raises(UnusableVersionError, match="copy/1 holds the manifest of pets version 1"):
        promotion.promote(tmp_path / "models", tmp_path, "copy", 1, "me")


def test_nothing_to_roll_back_to(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="No other version of pets was in production before 1"):
        promotion.rollback(models, tmp_path, "pets", "me")


def test_roll_back_to_a_damaged_version(models: Path, tmp_path: Path) -> None:
    artifact.write_aliases(models, "pets", Aliases(production=2, history=(4, 2)))
    with pytest.raises(UnusableVersionError, match="was changed"):
        promotion.rollback(models, tmp_path, "pets", "me")
    assert artifact.read_aliases(models, "pets").production == 2


def test_unreadable_aliases_are_mended_by_a_promotion(models: Path, tmp_path: Path) -> None:
    (models / "pets" / artifact.ALIASES).write_text("{")
    with pytest.raises(ConflictError, match=r"aliases.json cannot be read"):
        promotion.rollback(models, tmp_path, "pets", "me")
    assert promotion.promote(models, tmp_path, "pets", 2, "me") == Aliases(production=2, history=(2,))


def test_nothing_changes_unlogged(models: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(StorageError):
        promotion.promote(models, tmp_path / "data", "pets", 2, "me")
    assert artifact.read_aliases(models, "pets").production == 1


_PROMOTE = """
import sys
from itertools import cycle
from pathlib import Path
from app import promotion
models, data, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("begun", flush=True)
for number, version in zip(range(count), cycle((2, 3, 1))):
    promotion.promote(models, data, "pets", version, "me")
"""


def promoter(models: Path, data: Path, count: int) -> subprocess.Popen[str]:
    """A process that promotes `count` times, and has begun to."""
    started = subprocess.Popen(
        [sys.executable, "-c", _PROMOTE, str(models), str(data), str(count)], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout
    with started.stdout as output:
        assert output.readline() == "begun\n"
    return started


def test_processes_take_turns(models: Path, tmp_path: Path) -> None:
    started = [promoter(models, tmp_path, 30) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    found = changes(tmp_path)
    # Each change begins where the one before it ended: no two were made at once.
    assert [before for _, before, _ in found] == [1, *(after for _, _, after in found[:-1])]
    assert artifact.read_aliases(models, "pets").production == found[-1][2]


@pytest.mark.parametrize("moment", [0.002, 0.01, 0.05])
def test_killed_process_leaves_aliases_whole_and_the_lock_free(models: Path, tmp_path: Path, moment: float) -> None:
    process = promoter(models, tmp_path, 1_000_000)
    time.sleep(moment)  # any moment will do: there is nothing to wait for
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert artifact.read_aliases(models, "pets").production in {1, 2, 3}
    assert promotion.promote(models, tmp_path, "pets", 2, "me").production == 2
