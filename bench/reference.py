"""Pictures that can be told apart by their answers, and what each version of a model says of each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving.engine import Engine, Pixels, Probabilities
from app.serving.engines import Engines
from app.settings import Settings
from bench import pictures
from training import artifact, machine, picture
from training.artifact import Manifest

_MOST_DRAWN = 8  # pictures for each one that is wanted
_COMPARED = 64  # pictures of each draw that are computed in batches of every size
_LEAST_NOISE = 0.01  # as a share of the standard deviation of a version's answers

Top = Sequence[Mapping[str, Any]]  # of an answer: labels and probabilities of the likeliest classes


@dataclass(frozen=True)
class Reference:
    """Pictures, and their probabilities by version, number of the picture, and class.

    Answers differ a little with the batch that they are computed in, by version at most by `tolerances`. No answer is
    as near to another one, of another picture or version, as both of their tolerances together.
    """

    pictures: Sequence[bytes]
    answers: Mapping[int, Sequence[Mapping[str, float]]]
    tolerances: Mapping[int, float]

    def agrees(self, version: int, number: int, top: Top) -> bool:
        """Whether that is what a version says of a picture."""
        row, tolerance = self.answers[version][number], self.tolerances[version]
        return bool(top) and all(abs(row[entry["label"]] - entry["probability"]) <= tolerance for entry in top)

    def known(self, top: Top) -> bool:
        """Whether that is what any version says of any picture."""
        numbers = range(len(self.pictures))
        return any(self.agrees(version, number, top) for version in self.answers for number in numbers)


def make(models: Path, name: str, engine: str, data: Path, count: int) -> Reference:
    """Draw pictures and have each version of a model answer them, with the engine that the service will choose.

    Args:
        models: folder of the models.
        name: a model.
        engine: `APP_ENGINE` of the service.
        data: `APP_DATA_DIR` of the service, where the choice of engine is kept.
        count: how many pictures are wanted.

    Raises:
        RuntimeError: too few of the pictures that were drawn can be told apart.
    """
    settings = Settings(engine=engine, data_dir=data)
    versions = artifact.versions(models, name)
    opened = [_open(artifact.folder(models, name, version), settings) for version in versions]
    classes, size = opened[0].manifest.classes, opened[0].manifest.input_size
    drawn: list[bytes] = []
    table = np.empty((len(versions), 0, len(classes)), np.float32)
    noise = np.zeros(len(versions))
    while len(chosen := _distinct(table, 2 * noise)) < count:
        if len(drawn) >= _MOST_DRAWN * count:
            raise RuntimeError(f"Only {len(chosen)} of {len(drawn)} pictures have answers that can be told apart.")
        more = [pictures.small(len(drawn) + number) for number in range(count)]
        pixels = np.stack([picture.decode(encoded, size) for encoded in more])
        answered = [_answer(version, pixels) for version in opened]
        table = np.concatenate([table, np.stack([rows for rows, _ in answered])], axis=1)
        noise = np.maximum(noise, [max(spread, _LEAST_NOISE * rows.std(0).mean()) for rows, spread in answered])
        drawn += more
    chosen = chosen[:count]
    answers = {
        version: [dict(zip(classes, row, strict=True)) for row in rows[chosen].tolist()]
        for version, rows in zip(versions, table, strict=True)
    }
    tolerances = dict(zip(versions, (2 * noise).tolist(), strict=True))
    return Reference([drawn[number] for number in chosen], answers, tolerances)


@dataclass(frozen=True)
class _Opened:
    manifest: Manifest
    engines: Sequence[Engine]  # that the service may use
    sizes: Sequence[int]  # of the batches that the service may make


def _open(folder: Path, settings: Settings) -> _Opened:
    threads = machine.divide().engine
    machinery = Engines(settings.engine, "cpu", threads, settings.max_batch, settings.data_dir / "engines")
    manifest = artifact.verify(folder)
    opened = machinery.open(folder, manifest)
    engines = [engine for engine in (opened.engine, opened.halves) if engine]
    return _Opened(manifest, engines, [size for size in opened.curve.seconds if size <= opened.curve.batch])


def _answer(version: _Opened, pixels: Pixels) -> tuple[Probabilities, float]:
    """What it says of pictures, float32 [pictures, classes], and by how much smaller batches change that."""
    rows = _compute(version.engines[0], pixels, version.sizes[-1])
    few = slice(_COMPARED)
    again = [_compute(engine, pixels[few], size) for engine in version.engines for size in version.sizes]
    return rows, max(float(np.abs(other - rows[few]).max()) for other in again)


def _compute(engine: Engine, pixels: Pixels, size: int) -> Probabilities:
    return np.concatenate([engine.predict(pixels[start : start + size]) for start in range(0, len(pixels), size)])


def _distinct(table: Probabilities, tolerances: NDArray[np.float64]) -> list[int]:
    """Numbers of pictures whose answers are all further apart than their tolerances together.

    Args:
        table: float32 [versions, pictures, classes].
        tolerances: [versions].
    """
    least = tolerances[:, None] + tolerances
    chosen: list[int] = []
    for number in range(table.shape[1]):
        answers = table[:, number]
        kept = table[:, [*chosen, number]]
        distances = np.abs(answers[:, None, None] - kept).max(3)  # [versions, versions, pictures]
        distances[:, :, -1] += np.diag(np.full(len(least), np.inf))  # of each answer to itself
        if (distances > least[:, :, None]).all():
            chosen.append(number)
    return chosen
