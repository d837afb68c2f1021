"""Quantising a version writes an ordinary next version that says what it came from and what it cost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.shapes import write_shapes
from training import artifact, data, evaluate, export, packaging, quantiser, recipe, replay, run, scoring
from training.artifact import Manifest
from training.base import Base
from training.errors import InputError
from training.finetune import FinetuneJob, finetune
from training.normalisation import Normalisation
from training.quantisation import Quantisation, quantise

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
NETWORK = (
    "network.architecture='fast_resnet'",
    "network.arguments={widths=[8, 16, 16]}",
    "network.input_size=32",
    "epochs=12",
    "batch_size=16",
    "optimizer.learning_rate=0.01",
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A folder with the model `shapes`: version 2 is version 1 in integers, made from the command line."""
    folder = tmp_path_factory.mktemp("models")
    run.train(run.Job(recipe.load("small-data", NETWORK), str(shapes), "shapes", folder, device="cpu"))
    command = ["quantise", "--model", "shapes", "--data", str(shapes), "--models", str(folder)]
    done = subprocess.run([sys.executable, "-m", "training", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quantised from shapes@1" in done.stdout
    return folder


def manifest(models: Path, version: int) -> Manifest:
    return artifact.verify(artifact.folder(models, "shapes", version))


def test_it_says_what_it_came_from_and_what_it_cost(models: Path) -> None:
    before, after = manifest(models, 1), manifest(models, 2)
    assert after.parent == "shapes@1"
    assert after.recipe == before.recipe
    assert after.command.startswith("python -m training quantise --model shapes")
    assert after.quantisation
    accuracy = {version: found.metrics["validation"]["accuracy"] for version, found in enumerate((before, after))}
    assert after.quantisation["accuracy"] == {"before": accuracy[0], "after": accuracy[1]}
    assert accuracy[1] >= accuracy[0] - 0.1
    card = (artifact.folder(models, "shapes", 2) / "report/card.md").read_text()
    assert "| quantised from | shapes@1, int8 weights" in card
    assert f"{accuracy[1]:.2%} after" in card


def test_it_is_whole_and_smaller(models: Path) -> None:
    before, after = manifest(models, 1), manifest(models, 2)
    assert after.files.keys() == before.files.keys()
    assert after.files[replay.REPLAY] == before.files[replay.REPLAY]
    assert after.files["report/curves.png"] == before.files["report/curves.png"]
    assert after.files[artifact.WEIGHTS].size < before.files[artifact.WEIGHTS].size
    weights = load_file(artifact.folder(models, "shapes", 2) / artifact.WEIGHTS)
    assert weights["blocks.2.conv3.weight"].dtype is torch.int8
    assert artifact.read_aliases(models, "shapes").production == 1


def test_the_weights_alone_give_what_the_script_gives(models: Path, shapes: Path) -> None:
    folder, found = artifact.folder(models, "shapes", 2), manifest(models, 2)
    images = data.load(str(shapes), found.input_size).splits["train"].images[:16]
    network = packaging.restore(folder, found)
    script = export.load_script(folder / artifact.SCRIPT, CPU)
    expected = evaluate.logits(network, Normalisation(found.mean, found.std), images, CPU)
    got = evaluate.logits(script.network, script.preprocess, images, CPU)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_it_is_evaluated_like_any_version(models: Path, shapes: Path) -> None:
    found = scoring.score(models, "shapes@2", str(shapes), "test", unknown=str(shapes))
    assert found["accuracy"] == manifest(models, 2).metrics["test"]["accuracy"]
    assert found["novelty"]["auroc"].keys() == {"max_probability", "nearest_features"}


def test_a_fine_tune_begins_with_what_it_was_made_from(models: Path, tmp_path: Path) -> None:
    assert str(Base.read(models, "shapes@2")) == "shapes@1"
    source = write_shapes(tmp_path / "rings", count=12, kinds=["cross", "ring"], first=2000)
    job = FinetuneJob("shapes@2", str(source), "rings", models, method="head", epochs=1, device="cpu")
    assert finetune(job).parent == "shapes@1"


def test_other_data_is_refused(models: Path, tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "other", count=30, first=5000)
    with pytest.raises(InputError, match="not all that shapes@1 was trained on"):
        quantise(Quantisation("shapes", str(other), models))
    assert artifact.versions(models, "shapes") == [1, 2]


def test_the_default_model_keeps_its_answers(cifar10_archive: Path) -> None:
    base = Base.read(ROOT / "models", "cifar10")
    dataset = data.load(str(cifar10_archive), base.manifest.input_size)
    train, test = (
        part.subset(torch.arange(len(part)) % step == 0)
        for part, step in ((dataset.splits["train"], 400), (dataset.splits["test"], 10))
    )
    network = quantiser.quantised(base.network())
    quantiser.fit(network, base.normalise, train.images)
    before, after = (
        evaluate.accuracy(evaluate.logits(made, base.normalise, test.images, CPU), test.labels)
        for made in (base.network(), network)
    )
    assert before > 0.88
    assert after >= before - 0.006
