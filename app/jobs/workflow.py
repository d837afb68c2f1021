"""The workflow of one job: train, compare, promote. Each step's outcome is stored, so a restart goes on after it."""

import logging
import threading
from pathlib import Path
from typing import Any

from dbos import DBOS, error

from app import audit, promotion
from app.errors import ServiceError, StorageError
from app.jobs import process
from app.jobs.job import JobFailedError, Request, Result
from app.jobs.queue import WORKFLOW
from app.settings import Settings
from training import artifact

log = logging.getLogger(__name__)

RUNNING: set[str] = set()  # the jobs that this process is busy with
SUPERVISED = threading.Event()  # set if this process is a service's own worker


@DBOS.workflow(name=WORKFLOW)
def finetune(request: dict[str, Any]) -> dict[str, Any]:
    """Run one job; arguments and result are JSON, see `Request` and `Result`."""
    job = DBOS.workflow_id
    assert job  # noqa: S101 (a workflow has an id)
    RUNNING.add(job)
    try:
        return promote(job, request, train(job, request))
    finally:
        RUNNING.discard(job)


@DBOS.step()
def train(job: str, request: dict[str, Any]) -> dict[str, Any]:
    """Train in a process of its own, and compare the new version with the one in production.

    A run that was interrupted goes on from its last finished epoch; one whose version is written already writes no
    second one.

    Raises:
        JobFailedError: with what the user should know.
    """
    outcome = process.run(
        job, Request.model_validate(request), Settings(), lambda: _cancelled(job), supervised=SUPERVISED.is_set()
    )
    if outcome is None:
        raise error.DBOSWorkflowCancelledError(f"{job} was cancelled")
    if outcome.failure:
        raise JobFailedError(outcome.failure.detail, outcome.failure.errors)
    return outcome.model_dump(mode="json", exclude={"failure"})


@DBOS.step()
def promote(job: str, request: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """Put the new version into production if that was asked for and the gate is passed; give the job's `Result`."""
    wanted = Request.model_validate(request)
    promoted, reason = _promote(job, wanted, trained["version"], trained["comparison"])
    return Result(
        model=wanted.name,
        version=trained["version"],
        metrics=trained["metrics"],
        promoted=promoted,
        reason=reason,
        comparison=trained["comparison"],
    ).model_dump(mode="json")


def _promote(job: str, request: Request, version: int, comparison: dict[str, Any] | None) -> tuple[bool, str]:
    settings = Settings()
    production = artifact.read_aliases(settings.models_dir, request.name).production
    if production == version:
        if not comparison:
            _log_first(settings.data_dir, job, request.name, version)
        return True, "It is in production." if comparison else "It is the first version of the model."
    if request.promote == "never":
        return False, "The job was not asked to promote it."
    if comparison and not comparison["passed"]:
        return False, " ".join(comparison["reasons"])
    if comparison and comparison["production"] != production:
        return False, f"Version {production} was promoted meanwhile, and the candidate was not compared with it."
    try:
        promotion.promote(settings.models_dir, settings.data_dir, request.name, version, f"job {job}")
    except ServiceError as refused:
        return False, str(refused)
    return True, "It is not worse than what was in production."


def _log_first(data_dir: Path, job: str, model: str, version: int) -> None:
    """Log that a model's first version is in production, where `training.run.write` put it; once, as steps repeat."""
    actor = f"job {job}"
    try:
        if not audit.holds(data_dir, actor, "promote", model):
            audit.append(data_dir, actor, "promote", model, None, version)
    except (OSError, StorageError) as error:
        reason = error.__cause__ or error
        log.error("%s version %d is in production, and the audit log cannot say so: %s", model, version, reason)  # noqa: TRY400


def _cancelled(job: str) -> bool:
    status = DBOS.get_workflow_status(job)
    return status is None or status.status == "CANCELLED"
