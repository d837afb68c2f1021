"""Trials of canaries in one process: who answers which request, the copies that are compared, and when it ends."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from app import canary, comparison
from app.canary import Canary
from app.comparison import Comparison, Tally
from app.errors import ConflictError, InferenceError, ModelUnavailableError, UnknownModelError
from app.loader import Loader, Served
from app.serving.engine import Pixels, Probabilities
from app.telemetry import Timing
from training.errors import ArtifactError

log = logging.getLogger(__name__)

_SELF = "refit"  # who ends a trial in the audit log, where nobody asked for it


class Trial:
    """A candidate beside the version in production; both stay in memory until the trial is closed.

    Args:
        record: what is tried.
        production: the version in production.
        candidate: the version under trial.
        busy: tells whether pictures are being computed or wait for it.
    """

    def __init__(self, record: Canary, production: Served, candidate: Served, busy: Callable[[], bool]) -> None:
        self.record = record
        self.production = production
        self.candidate = candidate
        self.counted = Comparison()
        self._busy = busy
        self._process = uuid4().hex
        self._credit = 0.0
        self._copying: asyncio.Task[None] | None = None
        self._publishing = asyncio.Lock()
        self._over: Path | None = None  # once it has ended, where the answers that were begun before it count
        self._leases = ExitStack()
        for served in (production, candidate):
            self._leases.enter_context(served)

    def choose(self) -> Served:
        """Who answers the next request: of a hundred, the candidate gets `percent`, evenly spread."""
        self._credit += self.record.percent or 0
        if self._credit < 100:
            return self.production
        self._credit -= 100
        return self.candidate

    async def predict(
        self,
        served: Served,
        pixels: Pixels,
        timing: Timing,
        decode: Callable[[int], Awaitable[Pixels]],
        deadline: float = math.inf,
    ) -> Probabilities:
        """Answer a picture as `Batcher.predict` does, count it, and have a copy of it answered by the other version.

        The copy is computed after this answer and only while nothing else is; otherwise it is dropped.

        Args:
            served: who answers.
            pixels: uint8 [3, size, size], RGB.
            timing: where the time went.
            decode: gives the picture in another size.
            deadline: time of the event loop's clock after which the answer is worth nothing.

        Raises:
            InferenceError: the version that answers fails on this picture.
            ClosingError: the service is shutting down.
        """
        try:
            row = await served.batcher.predict(pixels, timing, deadline)
        except InferenceError:
            await self._count(served, None)
            raise
        await self._count(served, timing)
        if self._over:
            return row
        if self._busy() or (self._copying and not self._copying.done()):
            self.counted.dropped += 1
        else:
            self._copying = asyncio.create_task(self._copy(served, row, pixels, timing, decode))
        return row

    async def publish(self, folder: Path) -> None:
        """Let the other processes know what was counted here.

        Raises:
            OSError: it cannot be written.
        """
        async with self._publishing:
            await asyncio.to_thread(comparison.publish, folder, self._process, self.counted)

    async def close(self, folder: Path) -> None:
        """Let go of both versions, once the copy in work is answered.

        Args:
            folder: where to publish the counts of answers that were begun and are still to come.
        """
        self._over = folder
        if self._copying:
            await asyncio.wait((self._copying,))
        self._leases.close()

    async def _copy(
        self,
        served: Served,
        row: Probabilities,
        pixels: Pixels,
        timing: Timing,
        decode: Callable[[int], Awaitable[Pixels]],
    ) -> None:
        other = self.candidate if served is self.production else self.production
        size, taken = other.manifest.input_size, Timing()
        try:
            if size != served.manifest.input_size:
                pixels = await decode(size)
            copy = await other.batcher.predict(pixels, taken)
        except InferenceError:
            self._count_pair(timing, None)
        except Exception:
            log.exception("A copy of a picture for %s version %d could not be compared", other.name, other.version)
        else:
            self._count_pair(timing, taken)
            labels = served.manifest.classes[row.argmax()], other.manifest.classes[copy.argmax()]
            self.counted.compared += 1
            self.counted.agreed += labels[0] == labels[1]

    async def _count(self, served: Served, timing: Timing | None) -> None:
        """Count an answer. Those of a shadow's production version count only in pairs: when both were not busy."""
        if not self.record.percent:
            return
        _add(self.counted.candidate if served is self.candidate else self.counted.production, timing)
        if self._over:
            try:
                await self.publish(self._over)
            except OSError as error:
                log.warning("The last answers of a trial cannot be counted: %s", error)

    def _count_pair(self, production: Timing, candidate: Timing | None) -> None:
        if not self.record.percent:
            _add(self.counted.production, production)
            _add(self.counted.candidate, candidate)


class Trials:
    """The trials that run in this process, as the files of the models say. Belongs to one event loop.

    Args:
        models: folder of the models.
        data_dir: folder of the audit log and of what is counted.
        loader: loads candidates.
    """

    def __init__(self, models: Path, data_dir: Path, loader: Loader) -> None:
        self._models = models
        self._data_dir = data_dir
        self._loader = loader
        self._trials: dict[str, Trial] = {}
        self._lost: dict[str, str] = {}  # why trials are over here, even if that could not be written

    def get(self, name: str) -> Trial | None:
        """The trial of a model."""
        return self._trials.get(name)

    async def follow(self, name: str, production: int | None) -> None:
        """Begin and end trials as the file of a model says; a candidate is loaded and warmed up first.

        Args:
            name: a model.
            production: the version of it that answers.
        """
        record = await asyncio.to_thread(self._running, name)
        if record and (record.base != production or record.id in self._lost):
            record = None
        trial = self._trials.get(name)
        if trial and trial.record == record:
            return
        begun = await self._begin(name, record) if record else None
        if trial:
            await self._end(name, trial)
        if begun:
            self._trials[name] = begun

    async def watch(self) -> None:
        """Exchange counts with the other processes, and end every trial whose candidate has lost."""
        for name, trial in list(self._trials.items()):
            reason = (await self._total(name, trial)).regression(trial.record.max_slowdown)
            if reason:
                await self._lose(name, trial.record, reason)

    async def report(self, name: str) -> tuple[Canary, Comparison]:
        """The newest trial of a model, running or ended, and what all processes have counted in it.

        Raises:
            UnknownModelError: there is no such model.
            UnknownCanaryError: there never was a trial.
            ConflictError: the file is unreadable.
        """
        record = await asyncio.to_thread(canary.newest, self._models, name)
        trial = self._trials.get(name)
        if trial and trial.record.id == record.id:
            return record, await self._total(name, trial)
        if not record.ended:
            record = record.model_copy(update={"reason": self._lost.get(record.id)})
        return record, await asyncio.to_thread(comparison.gather, canary.counts(self._data_dir, name, record))

    async def close(self) -> None:
        """Let go of all versions under trial."""
        for name, trial in list(self._trials.items()):
            await self._end(name, trial)

    def _running(self, name: str) -> Canary | None:
        try:
            return canary.running(self._models, name)
        except UnknownModelError:
            return None
        except (ConflictError, ArtifactError) as error:
            log.error("No trial of %s: %s", name, error)  # noqa: TRY400 (the reason is the message)
            return None

    async def _begin(self, name: str, record: Canary) -> Trial | None:
        try:
            production = await self._loader.load(name, record.base)
            with production:
                candidate = await self._loader.load(name, record.version)
                trial = Trial(record, production, candidate, self._loader.busy)
        except (ModelUnavailableError, UnknownModelError) as error:
            await self._lose(name, record, str(error))
            return None
        log.info("%s version %d is on trial beside version %d", name, record.version, record.base)
        return trial

    async def _lose(self, name: str, record: Canary, reason: str) -> None:
        log.warning("The trial of %s version %d ends: it %s", name, record.version, reason)
        self._lost[record.id] = reason
        trial = self._trials.get(name)
        if trial and trial.record.id == record.id:
            await self._end(name, trial)  # first of all: the file may be slow, or the disk full
        await asyncio.to_thread(canary.stop, self._models, self._data_dir, name, _SELF, reason, record.id)

    async def _end(self, name: str, trial: Trial) -> None:
        if self._trials.get(name) is trial:
            del self._trials[name]
        await trial.close(canary.counts(self._data_dir, name, trial.record))
        await self._total(name, trial)
        log.info("The trial of %s version %d has ended", name, trial.record.version)

    async def _total(self, name: str, trial: Trial) -> Comparison:
        folder = canary.counts(self._data_dir, name, trial.record)
        try:
            await trial.publish(folder)
            return await asyncio.to_thread(comparison.gather, folder)
        except OSError as error:
            log.warning("What other processes count cannot be exchanged (%s); this one goes by its own", error)
            return trial.counted


def _add(tally: Tally, timing: Timing | None) -> None:
    tally.add(timing.batch_wait + timing.inference if timing else None)
