"""The training process of a job, started the way a worker does it, without queue and service."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from app.jobs import process
from app.jobs.folder import JobFolder
from app.jobs.job import Request
from app.jobs.process import Outcome
from app.settings import Settings
from tests.app import artifacts
from tests.app.jobs import shapes
from tests.encoding import encode
from tests.training.shapes import draw
from training import artifact


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that the processes read, too; a cache of decoded data sets that holds one, and not two."""
    own = {"MODELS_DIR": "models", "DATA_DIR": "data"}
    for name, folder in own.items():
        monkeypatch.setenv(f"APP_{name}", str(tmp_path / folder))
    for name, value in {"DEVICE": "cpu", "FINETUNE_THREADS": "1", "KEEP_DATASETS_MB": "0.3"}.items():
        monkeypatch.setenv(f"APP_{name}", value)
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path / "cache"))
    return Settings()


def train(settings: Settings, job: str, archive: bytes, **fields: Any) -> Outcome:
    """What comes of a job of the model `shapes` that succeeds."""
    outcome = attempt(settings, job, archive, **fields)
    assert outcome.failure is None, JobFolder(settings.data_dir, job).log.read_text()
    return outcome


def attempt(settings: Settings, job: str, archive: bytes, **fields: Any) -> Outcome:
    """What comes of a job of the model `shapes`."""
    sha256 = hashlib.sha256(archive).hexdigest()
    folder = JobFolder(settings.data_dir, job)
    folder.path.mkdir(parents=True)
    (folder.path / f"{sha256}.zip").write_bytes(archive)
    request = Request(name="shapes", dataset=f"{sha256}.zip", dataset_sha256=sha256, epochs=1, **fields)
    outcome = process.run(job, request, settings, lambda: False, supervised=True)
    assert outcome
    return outcome


def test_an_old_version_whose_manifest_is_damaged_is_in_nobodys_way(settings: Settings) -> None:
    models = settings.models_dir
    damaged = artifacts.write(models, "shapes", seed=1, classes=("cross", "disc"), promote=False) / artifact.MANIFEST
    artifacts.write(models, "shapes", seed=2, classes=("cross", "disc"))
    damaged.write_text(damaged.read_text()[:100])
    outcome = train(settings, "a", shapes(), start="shapes@2", method="head")
    assert outcome.version == 3
    assert outcome.comparison
    assert outcome.comparison["production"] == 2
    folder = JobFolder(settings.data_dir, "a")
    assert f"{damaged} is not a valid manifest" in folder.log.read_text()
    assert str(damaged) not in str(folder.read_state().warnings)


def test_a_job_leaves_no_more_decoded_data_sets_than_are_to_be_kept(settings: Settings, tmp_path: Path) -> None:
    scratch: dict[str, Any] = {"start": None, "recipe": "resnet20", "batch_size": 16}
    train(settings, "a", shapes(), **scratch)
    (first,) = (tmp_path / "cache" / "datasets").iterdir()
    assert train(settings, "b", shapes(first=100), **scratch).comparison
    assert len(list(first.parent.iterdir())) == 1


def test_models_that_cannot_be_written_are_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_MODELS_DIR", "/sys/refit")  # where nobody can make a folder, not even root
    failure = attempt(Settings(), "a", shapes(), start=None, recipe="resnet20").failure
    assert failure
    assert "A folder of the service cannot be written" in failure.detail
    assert "/sys/refit" in failure.detail


def test_a_job_reads_pictures_of_as_many_pixels_as_the_service_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_MAX_PIXELS", "4800")
    archive = shapes(extra={"disc/fits.png": encode(draw("disc", 0).resize((80, 60)))})
    too_large = shapes(extra={"disc/large.png": encode(draw("disc", 0).resize((80, 61)))})
    scratch: dict[str, Any] = {"start": None, "recipe": "resnet20", "batch_size": 16}
    assert train(settings, "a", archive, **scratch).version == 1
    failure = attempt(settings, "b", too_large, **scratch).failure
    assert failure
    assert failure.errors == ["disc/large.png: The picture has 80 x 61 pixels; at most 4,800 are read. Scale it down."]
