"""Scoring a version that is written, on its own data, on corrupted pictures and on pictures of other things."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.encoding import encode
from tests.training.command import training
from tests.training.shapes import write_shapes
from training import artifact, data, scoring
from training.errors import InputError


def test_evaluate_prints_the_manifest_figures(models: Path, shapes: Path) -> None:
    done = training("evaluate", "--model", "shapes", "--data", shapes, "--models", models, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    recorded = artifact.read_manifest(artifact.folder(models, "shapes", 1)).metrics["test"]
    assert figures["accuracy"] == recorded["accuracy"]
    assert figures["count"] == recorded["count"]
    assert figures["version"] == 1
    table = training("evaluate", "--model", "shapes@1", "--data", shapes, "--models", models)
    assert f"accuracy {recorded['accuracy']:.2%}" in table.stdout


def test_evaluate_judges_corrupted_and_unknown_pictures_and_draws_what_it_found(
    models: Path, shapes: Path, tmp_path: Path
) -> None:
    noise = tmp_path / "noise"
    for number in range(40):
        path = noise / f"kind{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.effect_noise((32, 32), 120)))
    options = ("--corruptions", "--ood", noise, "--report", tmp_path / "report")
    arguments = ("evaluate", "--model", "shapes", "--data", shapes, "--models", models, *options)
    done = training(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["corruptions"]["clean"] == figures["accuracy"]
    assert len(figures["corruptions"]["accuracy"]["gaussian_noise"]) == 5
    assert figures["novelty"]["known"] == figures["count"]
    assert figures["novelty"]["unknown"] == 40
    assert figures["novelty"]["auroc"]["nearest_features"] > 0.8
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "confusion.png",
        "reliability.png",
        "corruptions.png",
    }
    table = training(*arguments).stdout
    assert "gaussian noise" in table
    assert "AUROC against 40 pictures of other things: max_probability" in table


def test_an_archive_of_what_the_model_was_trained_on_is_scored_without_it(
    models: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "same"), "tar", shapes))
    found = scoring.score(models, "shapes", str(archive), "test")
    folder = scoring.score(models, "shapes", str(shapes), "test")
    counts = artifact.read_manifest(artifact.folder(models, "shapes", 1)).data.counts
    assert found["data_sha256"] != folder["data_sha256"]
    assert found["left_out"] >= counts["train"] + counts["validation"]
    assert (found["count"], found["accuracy"]) == (folder["count"], folder["accuracy"])
    assert (found["scored"], folder["scored"], folder["left_out"]) == ("all pictures", "test split", 0)
    assert f"{found['left_out']} of 120 pictures are left out" in caplog.text
    whole = scoring.score(models, "shapes", str(archive), "train")
    assert (whole["count"], whole["left_out"]) == (120, 0)
    trained = data.partition(data.load(str(shapes), 32), 20, 0).train.names
    for name in trained:
        (tmp_path / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / name, tmp_path / "kept" / name)
    with pytest.raises(InputError, match="trained on all of these pictures"):
        scoring.score(models, "shapes", str(tmp_path / "kept"), "test")


def test_nothing_is_said_of_data_that_is_not_at_hand(
    models: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path / "cache"))
    archive = Path(shutil.make_archive(str(tmp_path / "same"), "tar", shapes))
    found = scoring.score(models, "shapes", str(archive), "test")
    assert (found["count"], found["left_out"], found["scored"]) == (120, 0, "all pictures")
    assert "is not cached" in caplog.text
    assert "was not trained on it" not in caplog.text


def test_pictures_of_other_things_may_be_of_one_class(models: Path, shapes: Path, tmp_path: Path) -> None:
    rings = write_shapes(tmp_path / "rings", count=10, kinds=["ring"])
    found = scoring.score(models, "shapes", str(shapes), "test", unknown=str(rings))
    assert found["novelty"]["unknown"] == 10


def test_evaluate_refuses_unknown_classes_and_models(models: Path, shapes: Path, tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "other", count=3)
    (other / "disc").rename(other / "ball")
    done = training("evaluate", "--model", "shapes", "--data", other, "--models", models)
    assert done.returncode == 2
    assert "does not know the classes ['ball']" in done.stderr
    for model in ("nothing", "shapes@9"):
        assert training("evaluate", "--model", model, "--data", shapes, "--models", models).returncode == 2
