"""Scoring a version that is written, on its own data, on corrupted pictures and on pictures of other things."""

import json
from pathlib import Path

from PIL import Image

from tests.encoding import encode
from tests.training.command import training
from tests.training.shapes import write_shapes
from training import artifact


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


def test_evaluate_refuses_unknown_classes_and_models(models: Path, shapes: Path, tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "other", count=3)
    (other / "disc").rename(other / "ball")
    done = training("evaluate", "--model", "shapes", "--data", other, "--models", models)
    assert done.returncode == 2
    assert "does not know the classes ['ball']" in done.stderr
    for model in ("nothing", "shapes@9"):
        assert training("evaluate", "--model", model, "--data", shapes, "--models", models).returncode == 2
