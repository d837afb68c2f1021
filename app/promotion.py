"""Promotion: which version of a model is in production. Changed in one step, by one process at a time, and logged."""

import logging
from pathlib import Path

from app import audit, canary, catalog
from app.errors import ConflictError, StorageError
from training import artifact
from training.artifact import Aliases
from training.errors import ArtifactError

log = logging.getLogger(__name__)


def promote(models: Path, data_dir: Path, name: str, version: int, actor: str) -> Aliases:
    """Put a version into production; every server process follows. A trial that runs ends.

    Nothing happens if the version is there already.

    Args:
        models: folder of the models.
        data_dir: folder of the audit log.
        name: a model.
        version: one of its versions.
        actor: who wants it, for the audit log.

    Returns:
        The aliases as they are now.

    Raises:
        UnknownModelError: there is no such model or version.
        UnusableVersionError: its files are not those that its manifest lists.
        StorageError: the audit log or the aliases cannot be written.
    """
    with catalog.exclusive(models, name):
        aliases = _read_or_forget(models, name)
        if aliases.production == version:
            return aliases
        catalog.verify(models, name, version)
        return _change(models, data_dir, name, actor, "promote", aliases, (*aliases.history, version))


def rollback(models: Path, data_dir: Path, name: str, actor: str) -> Aliases:
    """Put the version into production that was there before the present one; arguments and errors as for `promote`.

    Raises:
        ConflictError: no version was in production before.
    """
    with catalog.exclusive(models, name):
        aliases, history = _read(models, name)
        catalog.verify(models, name, history[-1])
        return _change(models, data_dir, name, actor, "rollback", aliases, history)


def earlier(models: Path, name: str) -> int:
    """The version that a rollback leads to.

    Raises:
        UnknownModelError: there is no such model.
        ConflictError: no version was in production before.
    """
    catalog.check_model(models, name)
    return _read(models, name)[1][-1]


def _read(models: Path, name: str) -> tuple[Aliases, tuple[int, ...]]:
    """The aliases, and the versions that were in production before the present one, at least one."""
    try:
        aliases = artifact.read_aliases(models, name)
    except ArtifactError as error:
        raise ConflictError(f"{error} Promoting a version does so.") from error
    history = aliases.history[:-1] if aliases.history[-1:] == (aliases.production,) else aliases.history
    if not history:
        raise ConflictError(
            f"No other version of {name} was in production before {aliases.production}. Promote the one that should be."
        )
    return aliases, history


def _read_or_forget(models: Path, name: str) -> Aliases:
    try:
        return artifact.read_aliases(models, name)
    except ArtifactError as error:
        log.warning("%s The history of %s begins anew.", error, name)
        return Aliases()


def _change(
    models: Path, data_dir: Path, name: str, actor: str, action: str, aliases: Aliases, history: tuple[int, ...]
) -> Aliases:
    version = history[-1]
    # Logged first: a change may be logged and not made, which the next line shows, but never made and not logged.
    audit.append(data_dir, actor, action, name, aliases.production, version)
    after = Aliases(production=version, history=history)
    try:
        artifact.write_aliases(models, name, after)
    except ArtifactError as error:
        audit.append(data_dir, actor, f"{action} failed", name, aliases.production, aliases.production)
        raise StorageError(f"{models / name / artifact.ALIASES} cannot be written, so nothing was changed.") from error
    log.info("%s: version %s in place of %s, by %s", name, version, aliases.production, actor)
    try:
        canary.end(models, data_dir, name, actor, f"version {version} was put into production", version)
    except StorageError as error:  # its base is in production no more, so that it does not run anyway
        log.warning("%s", error)
    return after
