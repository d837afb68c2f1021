"""Models to measure: written by a short training run with the recipe of the architecture.

How fast a network is does not depend on what it has learned.
"""

import sys
from pathlib import Path
from subprocess import run

from bench import pictures
from training import artifact

CLASSES = 10
_PICTURES = 24  # of each class


def make(folder: Path, recipe: str, versions: int = 1) -> Path:
    """Train a recipe for one epoch on a few drawn pictures, unless that was done before; gives the version's folder.

    Args:
        folder: where models and pictures are kept.
        recipe: its name is the model's, too.
        versions: how many there are to be, of different weights; the first one is in production.
    """
    models = folder / "models"
    for seed in range(len(artifact.versions(models, recipe)), versions):
        data = _draw(folder / "pictures")
        command = f"train --recipe {recipe} --data {data} --name {recipe} --models {models} --device cpu --set epochs=1"
        run([sys.executable, "-m", "training", *command.split(), "--seed", str(seed)], check=True)  # noqa: S603 (ours)
    return artifact.folder(models, recipe, 1)


def _draw(folder: Path) -> Path:
    for label in range(CLASSES):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(_PICTURES):
            (place / f"{number}.png").write_bytes(pictures.small(1000 * label + number))
    return folder
