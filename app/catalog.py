"""The catalogue: the models and versions in a folder of models, and what is said of those that are not there."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.errors import StorageError, UnknownModelError, UnusableVersionError
from training import artifact
from training.errors import ArtifactError

_LOCK = ".lock"
_SHOWN = 100  # characters of a name that nobody may ever have given to a model


def check_model(models: Path, name: str) -> None:
    """Return if there is a model of that name.

    Raises:
        UnknownModelError: there is none; the message names those there are.
    """
    if not artifact.is_model(models, name):
        there = artifact.names(models)
        raise UnknownModelError(unknown_model(name, there) if there else no_models(models))


def check_version(models: Path, name: str, version: int) -> None:
    """Return if the model has that version.

    Raises:
        UnknownModelError: there is no such model or version; the message names those there are.
    """
    check_model(models, name)
    there = artifact.versions(models, name)
    if version not in there:
        raise UnknownModelError(f"The model {name!r} has no version {version}. Versions: {_shown(there)}.")


def production(models: Path, name: str) -> int:
    """The version in production.

    Raises:
        UnknownModelError: there is no such model, or no version of it is in production.
        ArtifactError: the aliases are unreadable, or name a version that is not there.
    """
    check_model(models, name)
    there = artifact.versions(models, name)
    version = artifact.read_aliases(models, name).production
    if version is None:
        raise UnknownModelError(
            f"No version of the model {name!r} is in production. Ask for one with version=. Versions: {_shown(there)}."
        )
    if version not in there:
        raise ArtifactError(
            f"Version {version} of {name} is in production and is not there. Restore its folder, or put another "
            f"version into production. Versions: {_shown(there)}."
        )
    return version


def verify(models: Path, name: str, version: int) -> None:
    """Return if a version is there, whole and unchanged.

    Raises:
        UnknownModelError: there is no such model or version.
        UnusableVersionError: its files are not those that its manifest lists.
    """
    check_version(models, name, version)
    try:
        artifact.verify(artifact.folder(models, name, version))
    except ArtifactError as error:
        raise UnusableVersionError(str(error)) from error


@contextmanager
def exclusive(models: Path, name: str) -> Iterator[None]:
    """Let no other process change what serves of this model until the block ends.

    Raises:
        UnknownModelError: there is no such model.
        StorageError: the model's folder cannot be written.
    """
    check_model(models, name)
    path = models / name / _LOCK
    try:
        lock = path.open("w")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}), so nothing was changed. Mend the rights of APP_MODELS_DIR."
        ) from error
    with lock:  # closing it, or the end of the process, gives the lock back
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def no_models(models: Path) -> str:
    """What is said where there is no model at all."""
    return (
        f"There is no model in the folder {models}. Make one with `python -m training train`, or set APP_MODELS_DIR to "
        "a folder that has some, then restart the service."
    )


def unknown_model(name: str, there: Sequence[str]) -> str:
    """What is said of a model that is not among those there are."""
    return f"There is no model {name[:_SHOWN]!r}. Models: {', '.join(there)}."


def _shown(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
