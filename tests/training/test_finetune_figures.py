"""The figures that the README gives for fine-tuning, measured anew: `REFIT_FIGURES=1 pytest -s` on this file.

They take some minutes of two processors, so they are left out otherwise.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.training.photos import write_photos
from training import artifact, scoring
from training.finetune import FinetuneJob, finetune

pytestmark = [
    pytest.mark.skipif(os.environ.get("REFIT_FIGURES") != "1", reason="set REFIT_FIGURES=1 to measure the figures"),
    pytest.mark.timeout(1800),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the default model."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cifar10").symlink_to(ROOT / "models" / "cifar10")
    return tmp_path / "models"


@pytest.mark.parametrize("pair", [("ship", "airplane"), ("deer", "horse"), ("cat", "dog")])
def test_360_photos_of_two_classes(models: Path, tmp_path: Path, cifar10_archive: Path, pair: tuple[str, str]) -> None:
    large, small = pair
    source = write_photos(cifar10_archive, tmp_path / "photos", {large: (0, 240), small: (0, 120)})
    unseen = write_photos(cifar10_archive, tmp_path / "unseen", {large: (240, 740), small: (240, 740)})
    started = time.perf_counter()
    manifest = finetune(FinetuneJob("cifar10", str(source), "photos", models))
    seconds = time.perf_counter() - started
    base = scoring.score(models, "cifar10", str(unseen), "test")["accuracy"]
    figures = scoring.score(models, "photos", str(unseen), "test")
    print(  # noqa: T201  it is what the test is run for
        f"\n{large}/{small}: {figures['accuracy']:.2%} of {figures['count']} unseen photos in {seconds:.0f} s, "
        f"the base {base:.2%}; input {manifest.input_size}, {manifest.finetune}, {manifest.metrics['cross_validation']}"
    )
    assert seconds <= 300
    assert figures["accuracy"] >= (0.92 if "cat" not in pair else 0.8)


def test_digits_added_to_the_ten(models: Path, tmp_path: Path, cifar10_archive: Path) -> None:
    pictures = load_digits().images
    for folder, chosen in (("new", pictures[:200]), ("unseen", pictures[200:1200])):
        (tmp_path / folder / "digit").mkdir(parents=True)
        for number, grey in enumerate(chosen):
            picture = Image.fromarray((grey * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
            picture.save(tmp_path / folder / "digit" / f"{number}.png")
    job = FinetuneJob("cifar10", str(tmp_path / "new"), "eleven", models, classes="add", base_data=str(cifar10_archive))
    manifest = finetune(job)
    assert artifact.verify(artifact.folder(models, "eleven", 1)) == manifest
    before, after = (
        scoring.score(models, name, str(cifar10_archive), "test")["accuracy"] for name in ("cifar10", "eleven")
    )
    print(  # noqa: T201  it is what the test is run for
        f"\ndigits: {manifest.metrics['test']['per_class']['digit']}, the old ten "
        f"{before:.2%} before, {after:.2%} after"
    )
    assert manifest.metrics["test"]["per_class"]["digit"]["recall"] >= 0.8
    assert before - after <= 0.02
