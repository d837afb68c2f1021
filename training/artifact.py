"""Artifacts: `models/<name>/<version>/`, written once, verified by hash before anything in them is used."""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from training.digest import file_sha256
from training.errors import ArtifactError, InputError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
SCRIPT = "model.ts"
NEIGHBOURS = "neighbours.safetensors"
ALIASES = "aliases.json"
CANARY = "canary.json"  # see `app.canary`
CERTAINTY_POWER = 8  # see `training.calibration`
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"

_PARTIAL, _LOCK = ".partial-", ".lock"

Channels = tuple[float, float, float]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """Hash (SHA-256, hexadecimal) and size in bytes of one file."""

    sha256: str
    size: int


class DataRecord(_Record):
    """What a model was trained on; `made_splits` were cut by `seed` from a source that came without them.

    `places` has a digit for each picture of the source's training split, where it is not the seed alone that says in
    which split it was: 0 in the training split, 1 in the validation split, 2 in the test split, 3 in none.
    """

    sha256: str
    counts: dict[str, int]
    made_splits: tuple[str, ...]
    seed: int
    places: str | None = None


class Manifest(_Record):
    """Everything that is known of one version.

    A picture is resized (bilinear, antialiased, not cropped) to a square of `input_size` pixels, scaled to 0..1 and
    normalised by `mean` and `std`; `temperature` divides the logits, or together with `temperature_certain` gives each
    picture a temperature of its own, see `training.calibration`. The script does all but the resizing.
    `training_seconds` counts the epochs with their validation. `parent` is the `name@version` that a version was
    made from, and `finetune` says how it was fine-tuned. With `quantisation`, which says what it cost, the network is
    `training.quantiser.quantised`; the recipe and what else is said of the training are then the parent's.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    version: PositiveInt
    created: str
    command: str
    architecture: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    input_size: PositiveInt
    channel_order: Literal["RGB"] = "RGB"
    resize: Literal["squash-bilinear"] = "squash-bilinear"
    mean: Channels
    std: Channels
    temperature: PositiveFloat
    temperature_certain: PositiveFloat | None = None
    metrics: dict[str, Any]
    data: DataRecord
    recipe: dict[str, Any]
    seed: int
    libraries: dict[str, str]
    training_seconds: float
    machine: str
    precision: str
    parent: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}@[1-9]\d*$")] | None = None
    finetune: dict[str, Any] | None = None
    quantisation: dict[str, Any] | None = None
    files: dict[str, FileRecord]


class Aliases(_Record):
    """Which version serves, and which ones did before it, oldest first."""

    production: PositiveInt | None = None
    history: tuple[PositiveInt, ...] = ()


class _Trial(BaseModel):
    """The versions that a model's newest trial compares."""

    version: PositiveInt
    base: PositiveInt


def check_name(name: str) -> str:
    """Give back a model's name if it can be a folder and a part of an address.

    Raises:
        InputError: it cannot.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            f"{name!r} cannot be a model's name. Use up to 64 small letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit."
        )
    return name


def folder(models: Path, name: str, version: int) -> Path:
    """Where a version lies."""
    return models / name / str(version)


def is_model(models: Path, name: str) -> bool:
    """Whether there is a model of that name: one that has a version or aliases."""
    if not re.fullmatch(NAME_PATTERN, name):
        return False
    return bool(versions(models, name)) or (models / name / ALIASES).exists()


def names(models: Path) -> list[str]:
    """Names of the models, sorted."""
    return sorted(path.name for path in models.iterdir() if is_model(models, path.name)) if models.is_dir() else []


def versions(models: Path, name: str) -> list[int]:
    """Numbers of a model's versions, ascending; unfinished ones are not among them."""
    if not (models / name).is_dir():
        return []
    found = (path.name for path in (models / name).iterdir() if path.is_dir())
    return sorted(int(number) for number in found if re.fullmatch(r"[1-9]\d*", number))


def resolve(models: Path, model: str) -> tuple[str, int]:
    """Name and version that `name` or `name@version` stands for.

    Raises:
        InputError: there is no such model or version.
    """
    name, _, number = model.partition("@")
    known = versions(models, check_name(name))
    if not known:
        raise InputError(f"There is no model {name!r} in {models}. There are: {', '.join(names(models)) or 'none'}.")
    version = int(number) if number.isdecimal() else read_aliases(models, name).production
    if version is None or version not in known or (number and not number.isdecimal()):
        raise InputError(f"Model {name!r} has no version {number or 'in production'}; it has {known}.")
    return name, version


def read_manifest(path: Path) -> Manifest:
    """Read a version's manifest; its files are not looked at.

    Raises:
        ArtifactError: it is missing or not a valid manifest.
    """
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{path / MANIFEST} cannot be read: {error.strerror}. Restore the version or remove it."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path / MANIFEST} is not a valid manifest ({place}: {first['msg']}). Restore the version or remove it."
        ) from error


def verify(path: Path) -> Manifest:
    """Read a version's manifest and compare the size and hash of every file that it lists.

    Raises:
        ArtifactError: the manifest is unreadable, is another version's, names a file outside the folder, or a file
            differs from it.
    """
    manifest = read_manifest(path)
    if (manifest.name, str(manifest.version)) != (path.parent.name, path.name):
        raise ArtifactError(
            f"{path} holds the manifest of {manifest.name} version {manifest.version}; a version answers only under "
            "the name and number that it was made with. Move the folder back there or remove it."
        )
    for required in (WEIGHTS, SCRIPT):
        if required not in manifest.files:
            raise ArtifactError(f"{path / MANIFEST} does not list {required}. Restore the version or remove it.")
    for name, record in manifest.files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise ArtifactError(f"{path / MANIFEST} names a file outside its folder: {name}.")
        try:
            same = file.stat().st_size == record.size and file_sha256(file) == record.sha256
        except OSError as error:
            raise ArtifactError(
                f"{file} cannot be read: {error.strerror}. Restore the version or remove it."
            ) from error
        if not same:
            raise ArtifactError(f"{file} was changed after it was written. Restore the version or remove it.")
    return manifest


@contextlib.contextmanager
def new_version(models: Path, name: str) -> Iterator[Path]:
    """Give an empty temporary folder that becomes the model's next version when the block ends without an error.

    Raises:
        ArtifactError: the disk is full or cannot be written; what was there before is untouched.
    """
    try:
        (models / name).mkdir(parents=True, exist_ok=True)
        remove_partial(models, name)
        with _unfinished(models / name) as partial:
            yield partial
            _publish(partial, models, name)
    except OSError as error:
        raise _unwritable(models / name, error) from error


def remove_partial(models: Path, name: str) -> None:
    """Remove what writers of a model's versions left that were killed; who is at work has a lock and is spared."""
    for partial in (models / name).glob(f"{_PARTIAL}*"):
        lock = partial.with_name(partial.name + _LOCK)
        if partial.is_dir() and not _locked(lock):
            shutil.rmtree(partial, ignore_errors=True)
            lock.unlink(missing_ok=True)


def next_version(models: Path, name: str) -> int:
    """The number that the next version gets: above those there are, and those that the aliases or a trial name.

    What is deleted may be in production all the same, or what a rollback leads to; another one must not pass for it.

    Raises:
        ArtifactError: the aliases are unreadable.
    """
    aliases = read_aliases(models, name)
    named = (aliases.production or 0, *aliases.history, *_on_trial(models, name))
    return max((*versions(models, name), *named)) + 1


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest as the last file of a version, with its place on disk made sure."""
    with (path / MANIFEST).open("w") as file:
        file.write(manifest.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def record_files(path: Path) -> dict[str, FileRecord]:
    """Hash every file below a folder, the manifest excepted."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {
        file.relative_to(path).as_posix(): FileRecord(sha256=file_sha256(file), size=file.stat().st_size)
        for file in files
    }


def read_aliases(models: Path, name: str) -> Aliases:
    """Read which version of a model serves; none does if nothing was ever promoted.

    Raises:
        ArtifactError: the file is unreadable.
    """
    path = models / name / ALIASES
    try:
        return Aliases.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Aliases()
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}). Restore it, or write the version to serve anew."
        ) from error


def write_aliases(models: Path, name: str, aliases: Aliases) -> None:
    """Replace a model's aliases in one step: a crash leaves the old ones or the new ones.

    Raises:
        ArtifactError: the disk is full or cannot be written.
    """
    replace_file(models / name / ALIASES, aliases.model_dump_json(indent=1) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a small file in one step: a crash leaves the old text or the new one.

    Raises:
        ArtifactError: the disk is full or cannot be written.
    """
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=_PARTIAL)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _on_trial(models: Path, name: str) -> tuple[int, ...]:
    path = models / name / CANARY
    try:
        trial = _Trial.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        log.warning("%s cannot be read, so that a number which it names may be given again: %s", path, error)
        return ()
    return trial.version, trial.base


@contextlib.contextmanager
def _unfinished(model: Path) -> Iterator[Path]:
    """Give an empty temporary folder, and hold a lock on the file beside it as long as it is there."""
    handle, lock = tempfile.mkstemp(dir=model, prefix=_PARTIAL, suffix=_LOCK)
    partial = Path(lock.removesuffix(_LOCK))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # before there is a folder that `remove_partial` could find
        partial.mkdir()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        Path(lock).unlink(missing_ok=True)
        os.close(handle)


def _locked(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # by whoever holds it, or somebody whose files are not ours to judge
        return True
    return False


def _publish(partial: Path, models: Path, name: str) -> None:
    """Rename a finished folder to the version that its manifest names; a rename never replaces a version."""
    version = read_manifest(partial).version
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    target = folder(models, name, version)
    try:
        partial.rename(target)
    except OSError as error:
        if target.exists():
            raise ArtifactError(f"{target} was written by another run meanwhile. Run again with --resume.") from error
        raise


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be written ({error.strerror or error}). Free some room or mend the rights, then run again with "
        "--resume. What was there before is untouched."
    )
