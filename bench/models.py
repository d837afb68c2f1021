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


def make(folder: Path, recipe: str) -> Path:
    """Train a recipe for one epoch on a few drawn pictures, unless that was done before; gives the version's folder."""
    models = folder / "models"
    if not artifact.versions(models, recipe):
        data = _draw(folder / "pictures")
        command = f"train --recipe {recipe} --data {data} --name {recipe} --models {models} --device cpu --set epochs=1"
        run([sys.executable, "-m", "training", *command.split()], check=True)  # noqa: S603 (our own command)
    return artifact.folder(models, recipe, 1)


def _draw(folder: Path) -> Path:
    for label in range(CLASSES):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(_PICTURES):
            (place / f"{number}.png").write_bytes(pictures.small(1000 * label + number))
    return folder
