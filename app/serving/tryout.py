"""Trying engines out, in a process of its own: one that crashes, or takes too long, costs the service only a log line.

Started as `python -m app.serving.tryout REQUEST`; writes one line of JSON for every engine that it begins with and one
for every engine that it is done with.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from app.serving import candidates, curve
from app.serving.candidates import Place
from app.serving.engine import AnyKind, Engine, Pixels, Probabilities
from training import artifact, probe
from training.artifact import Manifest
from training.probe import Probe

_ACCEPTED_PICTURES = 64  # that the answers of an engine are compared on
_ALWAYS = 2  # engines that are tried however long they take
_HOPELESS = 0.7  # of the rate of the best engine so far


class Request(BaseModel):
    """What is tried, and on what; after `seconds` no further engine is, if two were and one can be used."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    place: Place
    kinds: tuple[AnyKind, ...]
    max_batch: int
    tolerance: float
    seconds: float = 2


class Started(BaseModel):
    """An engine that is being tried from now on."""

    model_config = ConfigDict(extra="forbid")
    started: AnyKind


class Result(BaseModel):
    """What came of an engine.

    `error` says why it cannot be used, and `passing` whether it may be usable the next time. Otherwise `distance` is
    the largest difference of a probability from the reference, `same_label` the share of pictures with the same most
    probable class, and `seconds` what a batch takes by its size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: AnyKind
    error: str | None = None
    passing: bool = False
    distance: float = 0
    same_label: float = 0
    seconds: dict[int, float] = {}

    def at_best(self, again: "Result") -> "Result":
        """Of two tries of the engine the one that failed, or what each batch took at best."""
        if self.error or again.error:
            return self if self.error else again
        least = self.seconds | {
            size: min(taken, self.seconds.get(size, taken)) for size, taken in again.seconds.items()
        }
        return self.model_copy(update={"seconds": dict(sorted(least.items()))})


Line: TypeAdapter[Started | Result] = TypeAdapter(Started | Result)


def run(request: Request) -> Iterator[Started | Result]:
    """Try engines one after another."""
    manifest = artifact.read_manifest(request.folder)
    reference = _reference(request.folder, manifest)
    best = 0.0
    end = time.monotonic() + request.seconds
    for number, kind in enumerate(request.kinds):
        if number >= _ALWAYS and best and time.monotonic() > end:
            yield Result(kind=kind, error="not tried: the time for it was over")
            continue
        yield Started(started=kind)
        try:
            result = _try(kind, request, manifest, reference, _HOPELESS * best)
        except Exception as error:  # whatever a library may raise: the next engine may still do
            # What the system refuses (room on the disk, above all), it may grant another time.
            passing = isinstance(error, (OSError, MemoryError))
            yield Result(kind=kind, error=f"{type(error).__name__}: {error}", passing=passing)
            continue
        if result.distance <= request.tolerance:
            best = max(best, curve.Curve(result.seconds).rate)
        yield result


def _try(kind: AnyKind, request: Request, manifest: Manifest, reference: Probe, hopeless: float) -> Result:
    candidates.prepare(kind, request.folder, manifest, request.place)
    engine = candidates.make(kind, request.folder, manifest, request.place)
    engine.load()
    engine.warm_up(1)
    answers = _answers(engine, reference.pictures[:_ACCEPTED_PICTURES], request.max_batch)
    expected = reference.probabilities[:_ACCEPTED_PICTURES]
    found = curve.measure(lambda size: engine.predict(_batch(reference, size)), request.max_batch, hopeless)
    return Result(
        kind=kind,
        distance=float(np.abs(answers - expected).max()),
        same_label=float((answers.argmax(1) == expected.argmax(1)).mean()),
        seconds=dict(found.seconds),
    )


def _reference(folder: Path, manifest: Manifest) -> Probe:
    """The artifact's probe, or noise and what its TorchScript says to it."""
    if probe.PROBE in manifest.files:
        return probe.read(folder / probe.PROBE)
    shape = (_ACCEPTED_PICTURES, 3, manifest.input_size, manifest.input_size)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    plain = candidates.make("torchscript-f32", folder, manifest, Place(device="cpu", threads=1))
    plain.load()
    return Probe(noise, _answers(plain, noise, len(noise)))


def _answers(engine: Engine, pictures: Pixels, max_batch: int) -> Probabilities:
    size = min(max_batch, 16)
    return np.concatenate([engine.predict(pictures[start : start + size]) for start in range(0, len(pictures), size)])


def _batch(reference: Probe, size: int) -> Pixels:
    return np.resize(reference.pictures, (size, *reference.pictures.shape[1:]))


def _main(arguments: Sequence[str]) -> None:
    # Libraries write to standard output as well, NNCF its progress: theirs goes where errors go.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as results:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in run(Request.model_validate_json(arguments[0])):
            results.write(line.model_dump_json() + "\n")
            results.flush()


if __name__ == "__main__":
    _main(sys.argv[1:])
