"""What was chosen for a version on this machine, and the folder in which that is remembered."""

import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from app.serving.blocks import Blocks
from app.serving.curve import Curve
from app.serving.engine import Kind
from app.serving.tryout import Result

log = logging.getLogger(__name__)

_FILE = "choice.json"
_LOCK = "lock"


class Choice(BaseModel):
    """What was chosen and why; `tried` has all engines that were tried, in their order."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    tried: tuple[Result, ...]
    blocks: Blocks | None = None

    @property
    def curve(self) -> Curve:
        """The cost curve of the engine that was chosen, and of its blocks."""
        plain = Curve(next(result.seconds for result in self.tried if result.kind == self.kind))
        return self.blocks.applied(plain) if self.blocks else plain


@contextmanager
def recalled(folder: Path | None, needed: int) -> Iterator[tuple[Path, Choice | None]]:
    """A folder for one process at a time, and the choice that is remembered there.

    Where it cannot be written, or has no room, it is another one that is removed afterwards: an engine needs no file
    any more once it is loaded.

    Args:
        folder: None for one that is removed afterwards.
        needed: bytes that trying engines takes.
    """
    with ExitStack() as stack:
        usable = folder and stack.enter_context(_locked(folder))
        choice = _recall(usable) if usable else None
        if usable and not choice and not _has_room(usable, needed):
            log.warning(
                "%s has no room for the %d MB of converted networks: the engine is chosen anew at every start. "
                "Make room on its disk.",
                usable.parent,
                needed / 1e6,
            )
            usable = None
        yield usable or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refit-engine-"))), choice


def remember(folder: Path, choice: Choice, tried: Sequence[Result]) -> None:
    """Keep a choice for the next start, unless an engine that was tried for it may do better then."""
    failed = [result.kind for result in tried if result.passing]
    if failed:
        log.warning("%s failed, and may not the next time: the engine is chosen anew then.", " and ".join(failed))
        return
    partial = folder / "choice.partial"
    try:
        partial.write_text(choice.model_dump_json(indent=1))
        partial.replace(folder / _FILE)
    except OSError as error:
        log.warning("%s cannot be written (%s): the engine is chosen anew at the next start.", folder, error.strerror)


def forget(folder: Path) -> None:
    """Remove the choice, and whatever was converted for it."""
    for path in folder.iterdir():
        if path.name != _LOCK:
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[Path | None]:
    """A folder for one process at a time; None if it cannot be written."""
    usable = True
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            lock = stack.enter_context((folder / _LOCK).open("w"))
            # Engines that are timed while other processes time theirs all look slow.
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): the engine is chosen anew at every start.", folder.parent, error.strerror
            )
            usable = False
        yield folder if usable else None


def _has_room(folder: Path, needed: int) -> bool:
    return shutil.disk_usage(folder).free >= needed


def _recall(folder: Path) -> Choice | None:
    path = folder / _FILE
    try:
        choice = Choice.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s cannot be read (%s): the engine is chosen anew.", path, error)
        return None
    log.info("%s, as it was chosen before: see %s", choice.kind, path)
    return choice
