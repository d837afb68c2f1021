"""The training process of a job: `python -m app.jobs.child JOB REQUEST`. Its outcome is one JSON document on stdout."""

import errno
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.jobs.folder import NO_ROOM, JobFolder, find_dataset
from app.jobs.job import JobFailure, Request
from app.jobs.process import Outcome, end_with_parent
from app.settings import Settings
from training import artifact, compare, data, device, lock, machine, recipe, run
from training.artifact import Manifest
from training.errors import ArtifactError, InputError, TrainingError
from training.finetune import FinetuneJob, finetune
from training.sink import Epoch, Step

log = logging.getLogger(__name__)

_NICE = 19
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_REWRITE_SECONDS = 0.5
_LONG = {"per_class", "confusion"}  # parts of a split's figures that are left to the manifest


class Reporter(logging.Handler):
    """Writes how the run goes into the job's folder: a sink of the run, and a handler for its warnings."""

    def __init__(self, folder: JobFolder) -> None:
        super().__init__(logging.WARNING)
        self._folder = folder
        self._state = folder.read_state()  # of the run before the interruption, if there was one
        self._written = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._state.warnings:
            self._write(warnings=[*self._state.warnings, message])

    def step(self, step: Step) -> None:
        if time.monotonic() - self._written >= _REWRITE_SECONDS:
            self._report(epoch=step.epoch, loss=step.loss, eta_seconds=step.eta_seconds)

    def epoch(self, epoch: Epoch) -> None:
        self._report(
            epoch=epoch.epoch,
            epochs=epoch.epochs,
            loss=epoch.loss,
            val_accuracy=epoch.val_accuracy,
            eta_seconds=epoch.seconds / epoch.epoch * (epoch.epochs - epoch.epoch),
        )

    def finish(self) -> None:
        """Report that no epoch comes any more: early stopping may have left some out."""
        self._report(eta_seconds=0.0)

    def _report(self, **changes: Any) -> None:
        self._write(progress=self._state.progress.model_copy(update=changes))

    def _write(self, **changes: Any) -> None:
        self._state = self._state.model_copy(update=changes)
        self._folder.write_state(self._state)
        self._written = time.monotonic()


def main() -> None:
    """Train, compare, and say what came of it."""
    job, request = sys.argv[1], Request.model_validate_json(sys.argv[2])
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what a library prints goes to the log, and not into the answer
        end_with_parent()
        _give_way()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        answer.write(_outcome(job, request, Settings()).model_dump_json())


def _give_way() -> None:
    """Leave the processors to whoever answers requests, and be the first to go when memory runs out.

    A thread that is scheduled as idle (sched(7)) is interrupted as soon as another wants its processor, where a nice
    one would go on for milliseconds. Where sessions are scheduled as groups (autogroup) that holds within a session:
    that of the service, or one of this process's own, which then is a nice one as a whole.
    """
    os.nice(_NICE)
    ways: list[Callable[[], object]] = [lambda: Path("/proc/self/oom_score_adj").write_text("1000")]
    if hasattr(os, "SCHED_IDLE"):
        ways.append(lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)))
    if os.getsid(0) == os.getpid():
        ways.append(lambda: Path("/proc/self/autogroup").write_text(str(_NICE)))
    for way in ways:
        try:
            way()
        except OSError as error:
            log.info("Training may be in the way of other processes: %s", error)


def _outcome(job: str, request: Request, settings: Settings) -> Outcome:
    try:
        return _run(job, request, settings)
    except InputError as error:
        return Outcome(failure=JobFailure(detail=str(error), errors=list(error.problems)))
    except TrainingError as error:
        return Outcome(failure=JobFailure(detail=str(error), errors=[]))
    except OSError as error:
        if error.errno in NO_ROOM:
            detail = f"The disk is full ({error}). Free some room and send the job again; production is untouched."
        elif error.errno in _READ_ONLY:
            detail = f"A folder of the service cannot be written ({error}). Mend its rights and send the job again."
        else:
            raise
        return Outcome(failure=JobFailure(detail=detail, errors=[]))


def _run(job: str, request: Request, settings: Settings) -> Outcome:
    machine.keep_freed_memory()
    device.set_threads(most=settings.finetune_threads)
    data.allow(settings.max_pixels)
    folder = JobFolder(settings.data_dir, job)
    reporter = Reporter(folder)
    logging.getLogger("training").addHandler(reporter)
    # A process of an earlier attempt may still be on its way out, or somebody trains on the command line.
    with lock.exclusive(run.runs_folder(settings.models_dir, request.name), f"POST /finetune/{job}", wait=True):
        try:
            manifest = _train(job, request, settings, folder, reporter)
            reporter.finish()
            comparison = _compare(manifest, settings)
        finally:  # only a process that is killed leaves its checkpoint to the next attempt
            shutil.rmtree(folder.checkpoint.parent, ignore_errors=True)
            _trim(settings)
    metrics = {
        name: {key: value for key, value in figures.items() if key not in _LONG}
        if isinstance(figures, dict)
        else figures
        for name, figures in manifest.metrics.items()
    }
    return Outcome(version=manifest.version, metrics=metrics, comparison=comparison)


def _train(job: str, request: Request, settings: Settings, folder: JobFolder, reporter: Reporter) -> Manifest:
    command = ("POST", f"/finetune/{job}")
    written = _written(settings.models_dir, request.name, " ".join(command))
    if written:
        return written  # the worker died between the writing and the recording of it
    resume = folder.checkpoint.exists()
    if resume:
        log.info("the run was interrupted and goes on from its last finished epoch")
    archive = str(folder.path / request.dataset)
    if request.recipe:
        chosen = recipe.load(request.recipe, _overrides(request))
        models, where = settings.models_dir, settings.device
        scratch = run.Job(chosen, archive, request.name, models, request.seed, where, command, folder.checkpoint)
        return run.train(scratch, [reporter], resume)
    assert request.start  # noqa: S101 (without a recipe, the service has found one)
    tuned = FinetuneJob(
        base=request.start,
        source=archive,
        name=request.name,
        models=settings.models_dir,
        method=request.method,
        epochs=request.epochs,
        batch_size=request.batch_size,
        learning_rate=request.learning_rate,
        classes=request.classes,
        seed=request.seed,
        device=settings.device,
        command=command,
        unfinished=folder.checkpoint,
    )
    return finetune(tuned, [reporter], resume)


def _written(models: Path, name: str, command: str) -> Manifest | None:
    """The version that this job has written, known by its manifest's command."""
    for version in reversed(artifact.versions(models, name)):
        try:
            manifest = artifact.read_manifest(artifact.folder(models, name, version))
        except ArtifactError as error:  # for the log alone: whoever sent the job need not know
            log.warning("version %d of %s is passed over: %s", version, name, error)
            continue
        if manifest.command == command:
            return manifest
    return None


def _overrides(request: Request) -> list[str]:
    values = {
        "epochs": request.epochs,
        "batch_size": request.batch_size,
        "optimizer.learning_rate": request.learning_rate,
    }
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def _compare(manifest: Manifest, settings: Settings) -> dict[str, Any] | None:
    production = artifact.read_aliases(settings.models_dir, manifest.name).production
    if production in {None, manifest.version}:
        return None
    assert production  # noqa: S101 (for the type checker)
    before = artifact.read_manifest(artifact.folder(settings.models_dir, manifest.name, production))
    archives = {
        sha256: find_dataset(settings.data_dir, sha256) for sha256 in (manifest.data.sha256, before.data.sha256)
    }
    return compare.compare(settings.models_dir, manifest.name, manifest.version, production, archives)


def _trim(settings: Settings) -> None:
    """Keep the decoded data sets few; what came of the job does not depend on it."""
    try:
        data.trim(settings.keep_datasets_bytes)
    except OSError as error:
        log.warning("decoded data sets that are to be deleted stay: %s", error)


if __name__ == "__main__":
    main()
