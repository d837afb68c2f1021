"""Canaries: a version that is tried on real requests beside the one in production, and what is on disk about it."""

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from app import audit, catalog
from app.errors import ConflictError, StorageError, UnknownCanaryError
from training import artifact
from training.errors import ArtifactError

log = logging.getLogger(__name__)

Percent = Annotated[float, Field(gt=0, lt=100)]
Slowdown = Annotated[float, Field(gt=1)]


class Canary(BaseModel):
    """A version under trial; it stays on disk after its end, until the next one begins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="Another one for every trial.")
    version: PositiveInt = Field(description="The version under trial, the candidate.")
    base: PositiveInt = Field(description="The version in production that it is compared with.")
    percent: Percent | None = Field(description="Its share of the requests; null for a shadow, which answers none.")
    max_slowdown: Slowdown = Field(description="How many times the production version's latency it may take.")
    started: datetime
    ended: datetime | None = Field(None, description="Null while it runs.")
    reason: str | None = Field(None, description="Why it ended.")


def read(models: Path, name: str) -> Canary | None:
    """The newest trial of a model, running or ended; None if there never was one.

    Raises:
        UnknownModelError: there is no such model.
        ConflictError: the file is unreadable.
    """
    catalog.check_model(models, name)
    path = models / name / artifact.CANARY
    try:
        return Canary.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConflictError(f"{path} cannot be read ({error}). Remove it, or start a trial anew.") from error


def newest(models: Path, name: str) -> Canary:
    """The newest trial of a model, running or ended.

    Raises:
        UnknownModelError: there is no such model.
        UnknownCanaryError: there never was a trial.
        ConflictError: the file is unreadable.
    """
    found = read(models, name)
    if not found:
        raise UnknownCanaryError(f"No version of {name} was ever on trial. Start one with POST.")
    return found


def running(models: Path, name: str) -> Canary | None:
    """The trial that runs; one whose base is in production no more has ended, whatever its file says."""
    canary = read(models, name)
    if not canary or canary.ended or canary.base != artifact.read_aliases(models, name).production:
        return None
    return canary


def start(
    models: Path,
    data_dir: Path,
    name: str,
    version: int,
    percent: float | None,
    max_slowdown: float,
    actor: str,
) -> Canary:
    """Try a version beside the one in production, in place of any trial before it; every server process follows.

    Args:
        models: folder of the models.
        data_dir: folder of the audit log and of what is counted.
        name: a model.
        version: one of its versions.
        percent: share of the requests that it answers; None for a shadow, which gets copies and answers none.
        max_slowdown: how many times the latency of the production version ends the trial.
        actor: who wants it, for the audit log.

    Raises:
        UnknownModelError: there is no such model or version.
        UnusableVersionError: its files are not those that its manifest lists.
        ConflictError: it is in production itself, or what is in production is not there.
        StorageError: the trial or the audit log cannot be written.
    """
    with catalog.exclusive(models, name):
        catalog.verify(models, name, version)
        base = _production(models, name)
        if base == version:
            raise ConflictError(f"Version {base} of {name} is in production. Name another one to try beside it.")
        canary = Canary(
            id=uuid4().hex,
            version=version,
            base=base,
            percent=percent,
            max_slowdown=max_slowdown,
            started=datetime.now(UTC),
        )
        end(models, data_dir, name, actor, f"the trial of version {version} takes its place", base)
        # Logged first, as promotions are.
        audit.append(data_dir, actor, "canary" if percent else "shadow", name, base, version, percent=percent)
        _write(models, name, canary)
        shutil.rmtree(counts(data_dir, name), ignore_errors=True)
        return canary


def stop(models: Path, data_dir: Path, name: str, actor: str, reason: str, canary_id: str | None = None) -> Canary:
    """End the trial that runs; nothing happens if it has ended.

    Args:
        models: folder of the models.
        data_dir: folder of the audit log.
        name: a model.
        actor: who wants it, for the audit log.
        reason: why.
        canary_id: only if it is this one that runs.

    Raises:
        UnknownModelError: there is no such model.
        UnknownCanaryError: there never was a trial.
        StorageError: the trial or the audit log cannot be written.
    """
    with catalog.exclusive(models, name):
        canary = newest(models, name)
        if canary_id not in {None, canary.id}:
            return canary
        return end(models, data_dir, name, actor, reason, canary.base) or canary


def end(models: Path, data_dir: Path, name: str, actor: str, reason: str, production: int) -> Canary | None:
    """End the trial that runs, if one does, for a caller that has the model for itself (`catalog.exclusive`).

    Raises:
        StorageError: the trial or the audit log cannot be written.
    """
    try:
        canary = read(models, name)
    except ConflictError as error:
        log.warning("%s", error)
        return None
    if not canary or canary.ended:
        return None
    ended = canary.model_copy(update={"ended": datetime.now(UTC), "reason": reason})
    audit.append(data_dir, actor, "canary end", name, canary.version, production, reason=reason)
    _write(models, name, ended)
    return ended


def counts(data_dir: Path, name: str, canary: Canary | None = None) -> Path:
    """Where the processes that take part in a model's trials keep what they have counted."""
    folder = data_dir / "canary" / name
    return folder / canary.id if canary else folder


def _production(models: Path, name: str) -> int:
    try:
        return catalog.production(models, name)
    except ArtifactError as error:
        raise ConflictError(f"{error} There has to be a version to compare with.") from error


def _write(models: Path, name: str, canary: Canary) -> None:
    path = models / name / artifact.CANARY
    try:
        artifact.replace_file(path, canary.model_dump_json(indent=1) + "\n")
    except ArtifactError as error:
        raise StorageError(f"{path} cannot be written, so nothing was changed.") from error
