"""The audit log: who changed what serves, and when. One JSON object a line, only ever appended to."""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from app.errors import StorageError

FILE = "audit.jsonl"


def holds(data_dir: Path, actor: str, action: str, model: str) -> bool:
    """Whether a line says that somebody did something to a model."""
    try:
        written = (data_dir / FILE).read_bytes()
    except FileNotFoundError:
        return False
    wanted = {"who": actor, "what": action, "model": model}
    return any(wanted.items() <= line.items() for line in map(_parse, written.splitlines()))


def append(
    data_dir: Path, actor: str, action: str, model: str, before: int | None, after: int | None, **more: object
) -> None:
    """Write one line, and return when it is on disk. Several processes may do so at once.

    Args:
        data_dir: folder of the log, made if it is not there.
        actor: who did it.
        action: what was done.
        model: to which model.
        before: the version that served until then.
        after: the version that serves from then on.
        more: what else is worth knowing.

    Raises:
        StorageError: the log cannot be written.
    """
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"when": moment, "who": actor, "what": action, "model": model, "from": before, "to": after} | more
    path = data_dir / FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A process that was killed, or a full disk, may have left half a line: it must not swallow this one.
            torn = file.seek(0, os.SEEK_END) > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"The audit log {path} cannot be written ({error.strerror}), so nothing was changed. Free some room or "
            "mend the rights of APP_DATA_DIR, then send the request again."
        ) from error


def _parse(line: bytes) -> dict[str, object]:
    try:
        entry: dict[str, object] = json.loads(line)
    except ValueError:  # half a line, see `append`
        return {}
    return entry
