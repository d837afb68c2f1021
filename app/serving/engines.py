"""Engines for artifacts: tries what the machine has, and opens the fastest that answers rightly."""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from app.serving import candidates, native, tryout
from app.serving.blocks import BlockEngine, Blocks, faster
from app.serving.candidates import Place
from app.serving.choice import Choice, forget, recalled, remember
from app.serving.curve import Curve
from app.serving.engine import AnyKind, BlockKind, Engine, Kind
from app.serving.processes import LIMIT_SECONDS, Processes
from app.serving.tryout import Result
from app.serving.turns import HALVES
from training import machine, probe
from training.artifact import SCRIPT, Manifest
from training.errors import ArtifactError

log = logging.getLogger(__name__)

# Largest distance of a probability of a probe picture from the reference with which an engine is taken for right.
# bfloat16 keeps 8 significant bits; answers differ by 0.003 in the mean then, and by 0.011 at most on the 64 probe
# pictures of the default model, whose accuracy and calibration stay what they were (docs/performance.md). In a version
# in integers a sum is now and then rounded to another level: up to 0.013 on 64 training pictures with three networks.
TOLERANCE = 0.02

# Of what the fastest engine takes for one picture; an engine that takes less computes the small batches.
_SOONER = 0.9

_FORMAT = 12  # of what is remembered: raise it whenever its meaning or the measuring changes
_LIBRARIES = ("torch", "openvino", "nncf")

# What converted networks take on a disk, in sizes of the TorchScript, whose weights may have half of their bits.
_NETWORK = 2
_WINOGRAD = 4  # 16 numbers for every 9


@dataclass(frozen=True)
class Opened:
    """An engine that is loaded, what it is and what its batches cost.

    `halves` computes two batches at a time, each with half of the threads, if there is a use for it and can be such an
    engine; `long` says whether batches become so large that they are worth dividing.
    """

    engine: Engine
    kind: Kind
    curve: Curve
    halves: Engine | None = None
    long: bool = False


class Engines:
    """Opens artifacts with the engine that suits the machine.

    Args:
        wanted: a kind, or `auto` for the fastest that answers as the artifact says, within `TOLERANCE`.
        device: where models run.
        threads: that compute a batch.
        max_batch: most pictures in a batch.
        cache: folder where choices and converted networks are kept; without one they are made anew each time.
        apart: whether batches may have to be kept apart, see `Turns`: then every network gets an engine for that.
    """

    def __init__(
        self,
        wanted: Kind | Literal["auto"],
        device: Literal["cpu", "cuda"],
        threads: int,
        max_batch: int,
        cache: Path | None = None,
        apart: bool = False,
    ) -> None:
        self._wanted = wanted
        self._device: Literal["cpu", "cuda"] = device
        self._threads = threads
        self._max_batch = max_batch
        self._cache = cache
        self._apart = apart
        self._processes = Processes()

    def close(self) -> None:
        """End what is being tried; who waits for it gets an error."""
        self._processes.close()

    def open(self, folder: Path, manifest: Manifest) -> Opened:
        """Choose an engine for a verified version, or recall the choice, and load it and warm it up.

        Raises:
            ArtifactError: no engine can run it, or not the one that is wanted.
        """
        needed = _bytes(self._kinds(), manifest.files[SCRIPT].size)
        with recalled(self._cache and self._cache / self._name(manifest), needed) as (cache, known):
            place = Place(device=self._device, threads=self._threads, cache=cache)
            try:
                opened = self._load(known or self._choose(folder, manifest, place), folder, manifest, place)
            except ArtifactError as error:
                if not known:
                    raise
                # As when the power failed before what was converted had reached the disk.
                log.warning("%s The engine is chosen anew.", error)
                forget(place.cache)
                opened = self._load(self._choose(folder, manifest, place), folder, manifest, place)
        opened.engine.warm_up(opened.curve.whole(divided=opened.halves is not None and opened.long))
        if opened.halves:
            opened.halves.warm_up(opened.curve.batch)
        return opened

    def _load(self, choice: Choice, folder: Path, manifest: Manifest, place: Place) -> Opened:
        """Load the engine that was chosen; it is not warmed up yet."""
        long = choice.curve.undivided < self._max_batch
        half = candidates.halved(choice.kind, place) if long or self._apart else None
        engine = _make(choice, folder, manifest, place, large=not half)
        halves = _make(choice, folder, manifest, half, large=True) if half else None
        for each in filter(None, (engine, halves)):
            each.load()
        return Opened(engine, choice.kind, choice.curve, halves, long)

    def _kinds(self) -> tuple[Kind, ...]:
        return candidates.possible(self._device) if self._wanted == "auto" else (self._wanted,)

    def _choose(self, folder: Path, manifest: Manifest, place: Place) -> Choice:
        kinds = self._kinds()
        if probe.PROBE not in manifest.files:
            log.warning(
                "%s brings no probe pictures, so its engines are compared on noise. Versions exported from now on do.",
                folder,
            )
        tried = self._processes.try_out(
            tryout.Request(folder=folder, place=place, kinds=kinds, max_batch=self._max_batch, tolerance=TOLERANCE)
        )
        by_kind = dict(zip(kinds, tried, strict=True))
        kind = suited(folder, by_kind, self._max_batch, strict=self._wanted == "auto")
        choice = Choice(kind=kind, tried=tried)
        log.info("%s", _table(folder, choice))
        blocks, tried_blocks = self._blocks(folder, choice, place)
        choice = choice.model_copy(update={"blocks": blocks})
        remember(place.cache, choice, [*tried, *tried_blocks])
        return choice

    def _blocks(self, folder: Path, choice: Choice, place: Place) -> tuple[Blocks | None, Sequence[Result]]:
        """Try whether large batches are faster in blocks, each with the threads that compute one then.

        Returns:
            The blocks if they are, and what was tried.
        """
        kinds = tuple(
            kind
            for kind in candidates.of_blocks(choice.kind)
            if self._wanted == "auto" or kind.startswith(self._wanted)
        )
        if not kinds or not _large(kinds[0], choice.curve, self._max_batch):
            return None, ()
        size = candidates.BLOCK[kinds[0]]
        sharing = HALVES if candidates.halved(choice.kind, place) else 1
        request = tryout.Request(
            folder=folder,
            place=place.model_copy(update={"threads": place.threads // sharing}),
            kinds=(*kinds, choice.kind),
            max_batch=size,
            tolerance=TOLERANCE,
            seconds=LIMIT_SECONDS,
        )
        tried = self._processes.try_out(request)
        blocks = _fastest(kinds, tried, choice.curve)
        if not blocks and not all(result.error for result in tried[:-1]):
            # Once more: a machine that was slower for a second rules nothing out.
            again = self._processes.try_out(request)
            tried = tuple(result.at_best(other) for result, other in zip(tried, again, strict=True))
            blocks = _fastest(kinds, tried, choice.curve)
        log.info(
            "%s in blocks of %d, with %d of %d threads: %s; %s",
            folder,
            size,
            request.place.threads,
            place.threads,
            "; ".join(_cost(result, size) for result in tried),
            f"{blocks.kind} is used from {blocks.least} pictures on" if blocks else "not used",
        )
        for kind in kinds:
            if not blocks or kind != blocks.kind:
                candidates.discard_blocks(kind, place)
        return blocks, tried

    def _name(self, manifest: Manifest) -> str:
        """Another one for whatever makes a difference to the choice."""
        key = {
            "format": _FORMAT,
            "script": manifest.files[SCRIPT].sha256,
            "machine": _describe(self._device),
            "libraries": {name: _installed(name) for name in _LIBRARIES},
            "native": native.AVAILABLE,
            "wanted": self._wanted,
            "threads": self._threads,
            "max_batch": self._max_batch,
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _make(choice: Choice, folder: Path, manifest: Manifest, place: Place, large: bool) -> Engine:
    """The engine that was chosen; `large` batches in blocks, if that is faster."""
    engine = candidates.make(choice.kind, folder, manifest, place)
    if not large or choice.blocks is None:
        return engine
    blocks = candidates.make(choice.blocks.kind, folder, manifest, place)
    size = choice.blocks.size if choice.blocks.kind in candidates.FIXED else sys.maxsize
    return BlockEngine(blocks, engine, size, choice.blocks.least)


def _bytes(kinds: Sequence[Kind], script: int) -> int:
    """What is written to try engines, if the TorchScript has so many bytes."""
    everything: set[AnyKind] = {*kinds, *(block for kind in kinds for block in candidates.of_blocks(kind))}
    sizes = 0
    if any(kind.startswith("openvino") for kind in everything):
        sizes += _NETWORK
    for kind, size in (("native-f32", _NETWORK), ("openvino-int8", _NETWORK), ("openvino-bf16-winograd", _WINOGRAD)):
        sizes += size if kind in everything else 0
    return 1_000_000 + sizes * script


def suited(folder: Path, tried: Mapping[Kind, Result], max_batch: int, strict: bool) -> Kind:
    """The fastest engine, or one that computes single pictures sooner, if the fastest can do its large batches.

    Args:
        folder: of the version, for the message.
        tried: what came of the engines.
        max_batch: most pictures in a batch.
        strict: whether they have to answer as the artifact says, within `TOLERANCE`.

    Raises:
        ArtifactError: none can be used.
    """
    able = {kind: result for kind, result in tried.items() if not result.error}
    right = [kind for kind, result in able.items() if result.distance <= TOLERANCE or not strict]
    if not right:
        reasons = "; ".join(f"{kind}: {result.error or _agreement(result)}" for kind, result in tried.items())
        raise ArtifactError(f"No engine can run {folder}. {reasons}")
    fastest, *others = sorted(right, key=lambda kind: Curve(able[kind].seconds).rate, reverse=True)
    sooner = (kind for kind in others if able[kind].seconds[1] < _SOONER * able[fastest].seconds[1])
    for kind in sooner:
        blocks = (block for block in candidates.of_blocks(kind) if block == fastest)
        if any(_large(block, Curve(able[kind].seconds), max_batch) for block in blocks):
            return kind
    return fastest


def _large(kind: BlockKind, curve: Curve, max_batch: int) -> bool:
    """Whether batches become so large that blocks are worth having, beside an engine of the given curve."""
    return max(candidates.BLOCK[kind], curve.undivided + 1) <= max_batch


def _fastest(kinds: Sequence[BlockKind], tried: Sequence[Result], curve: Curve) -> Blocks | None:
    """The fastest blocks of those that were tried before the ordinary engine of the given curve."""
    *of_blocks, plain = tried
    if plain.error:
        return None
    found = [
        faster(kind, result, plain, curve)
        for kind, result in zip(kinds, of_blocks, strict=True)
        if not result.error and result.distance <= TOLERANCE
    ]
    return min(filter(None, found), key=lambda blocks: blocks.seconds, default=None)


def _cost(result: Result, size: int) -> str:
    if result.error:
        return f"{result.kind}: {result.error}"
    return f"{1000 * Curve(result.seconds).estimate(size):.1f} ms by {result.kind}, {_agreement(result)}"


def _agreement(result: Result) -> str:
    return f"probabilities up to {result.distance:.2g} off, {result.same_label:.0%} same labels"


def _table(folder: Path, choice: Choice) -> str:
    lines = [f"{folder} runs on {choice.kind}, in batches of up to {choice.curve.batch}:"]
    for result in choice.tried:
        if result.error:
            lines.append(f"  {result.kind}: {result.error}")
            continue
        found = Curve(result.seconds)
        if result.kind == choice.kind:
            verdict = "chosen"
        elif result.distance > TOLERANCE:
            verdict = f"above the tolerance of {TOLERANCE}"
        else:
            verdict = "slower" if found.rate < choice.curve.rate else "slower with one picture"
        lines.append(
            f"  {result.kind}: {found.rate:.0f} pictures/s in batches of {found.batch}, one in "
            f"{1000 * found.seconds[1]:.1f} ms, {_agreement(result)}; {verdict}"
        )
    return "\n".join(lines)


def _describe(device: Literal["cpu", "cuda"]) -> str:
    if device == "cpu":
        return machine.describe()
    # Only here: a service without CUDA does without torch.
    import torch  # noqa: PLC0415

    from training.device import describe  # noqa: PLC0415

    return describe(torch.device(device))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
