"""The last step of a job, which is repeated when its worker dies before what came of it is stored."""

from pathlib import Path

import pytest

from app.jobs import workflow
from app.jobs.job import Request
from tests.app import artifacts
from tests.app.test_audit import lines

REQUEST = Request(name="pets", start="cifar10@1", dataset="pets.zip", dataset_sha256="")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose first version a training process has just written."""
    monkeypatch.setenv("APP_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("APP_DATA_DIR", str(tmp_path / "data"))
    artifacts.write(tmp_path / "models", "pets", seed=1)
    return tmp_path / "models"


def test_first_version_of_a_model_is_logged_once(models: Path, tmp_path: Path) -> None:
    for _ in range(2):
        promoted, reason = workflow._promote("7", REQUEST, 1, None)
        assert (promoted, reason) == (True, "It is the first version of the model.")
    (line,) = lines(tmp_path / "data")
    del line["when"]
    assert line == {"who": "job 7", "what": "promote", "model": "pets", "from": None, "to": 1}


def test_version_that_was_promoted_before_the_worker_died_is_logged_once(models: Path, tmp_path: Path) -> None:
    artifacts.write(models, "pets", seed=2, promote=False)
    for _ in range(2):
        promoted, _ = workflow._promote("7", REQUEST, 2, {"passed": True, "production": 1, "reasons": []})
        assert promoted
    assert [(line["from"], line["to"]) for line in lines(tmp_path / "data")] == [(1, 2)]


def test_first_version_stays_in_production_when_that_cannot_be_logged(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    assert workflow._promote("7", REQUEST, 1, None)[0]
    assert "pets version 1 is in production, and the audit log cannot say so" in caplog.text
