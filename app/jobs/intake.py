"""Takes a dataset in: a multipart form whose archive goes to disk piece by piece, or is made there of feedback."""

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.errors import DatasetError, DiskFullError, FeedbackOffError, InvalidRequestError, UnsupportedMediaError
from app.feedback import snapshot
from app.feedback.store import Store
from app.jobs.folder import NO_ROOM, new_upload
from app.jobs.job import Form
from training.digest import file_sha256
from training.source import ARCHIVES

FIELD = "dataset"
FEEDBACK = "feedback"  # in place of an archive: the labelled predictions of the model

_HOW = (
    f"Send a multipart form with the archive in the field '{FIELD}' (curl -F {FIELD}=@photos.zip -F name=photos), or "
    f"with {FIELD}={FEEDBACK} for labelled predictions of the model."
)
_MOST_FIELDS = 50
_PART = "archive"


@dataclass(frozen=True)
class Upload:
    """A form with its archive.

    Attributes:
        folder: holds the archive alone; deleted in the end unless it was renamed.
        filename: of the archive, as the client named it.
        gathered: whether the archive is made of feedback.
        archive: name of the file in `folder`, made of its hash; empty until the archive is there.
        warnings: what the user should know of how it was made.
    """

    form: Form
    folder: Path
    filename: str
    gathered: bool
    archive: str = ""
    sha256: str = ""
    warnings: tuple[str, ...] = ()


@asynccontextmanager
async def receive(request: Request, data_dir: Path) -> AsyncIterator[Upload]:
    """Read the form of `POST /finetune`, and the archive unless it is to be gathered.

    Raises:
        UnsupportedMediaError: the body is no multipart form.
        InvalidRequestError: a field is missing, unknown or wrong; all such fields are named.
        DatasetError: the file is of no kind that can be read.
        DiskFullError: there is no room for the archive, be it sent or made inside the block.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise UnsupportedMediaError(f"The content type is {kind or 'missing'}. {_HOW}")
    folder = await asyncio.to_thread(_make_room, data_dir)
    try:
        filename, fields = await _read(request, folder)
        gathered = filename is None
        if filename is None:
            filename = f"{fields.pop(FIELD)}.zip"
            fields["classes"] = fields.get("classes") or "add"  # few labels name every class, and none is to be lost
        upload = Upload(_validate(fields), folder, filename, gathered)
        yield upload if gathered else await asyncio.to_thread(_named, upload)
    except OSError as error:
        raise _no_room(error) from error
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def gather(upload: Upload, store: Store | None) -> Upload:
    """Make the archive of labelled predictions.

    Args:
        store: the predictions that are kept, if any are.

    Raises:
        DatasetError: too few predictions are labelled.
        FeedbackOffError: none are kept.
    """
    if store is None:
        raise FeedbackOffError()
    warnings = await asyncio.to_thread(snapshot.write, store, upload.form.name, upload.folder / _PART)
    return replace(await asyncio.to_thread(_named, upload), warnings=tuple(warnings))


def _named(upload: Upload) -> Upload:
    sha256 = file_sha256(upload.folder / _PART)
    archive = f"{sha256}{_ending(upload.filename)}"
    (upload.folder / _PART).rename(upload.folder / archive)
    return replace(upload, archive=archive, sha256=sha256)


def _make_room(data_dir: Path) -> Path:
    try:
        return new_upload(data_dir)
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> Exception:
    if error.errno not in NO_ROOM:
        return error
    return DiskFullError("There is no room on the service's disk for the archive. Nothing was kept; try again later.")


async def _read(request: Request, folder: Path) -> tuple[str | None, dict[str, str]]:
    """The archive's name as it was sent, None where feedback takes its place, and the fields that hold text."""
    try:
        form = await _ToDisk(request.headers, request.stream(), folder / _PART).parse()
    except MultiPartException as error:
        raise InvalidRequestError(f"The multipart form cannot be read: {error.message} {_HOW}") from error
    filename, fields = None, {}
    try:
        for name, value in form.multi_items():
            if name in fields or (name == FIELD and filename):
                raise InvalidRequestError(f"The form has the field '{name}' more than once.")
            if isinstance(value, str):
                fields[name] = value.strip()
            elif name == FIELD:
                filename = value.filename or ""
            else:
                raise InvalidRequestError(f"The form has a file in the field '{name}'. {_HOW}")
    finally:
        await form.close()
    if filename is None and fields.get(FIELD) != FEEDBACK:
        raise InvalidRequestError(f"The form has no file in the field '{FIELD}'. {_HOW}")
    return filename, fields


def _validate(fields: dict[str, str]) -> Form:
    try:
        return Form.model_validate({name: value for name, value in fields.items() if value})
    except ValidationError as error:
        found = (f"The field '{entry['loc'][0]}': {entry['msg']}." for entry in error.errors())
        raise InvalidRequestError(" ".join(found) + " See /docs.") from error


def _ending(filename: str) -> str:
    for ending in sorted(ARCHIVES, key=len, reverse=True):
        if filename.lower().endswith(ending):
            return ending
    raise DatasetError([f"{filename!r} is no archive that can be read. Send one of {', '.join(ARCHIVES)}."])


class _ToDisk(MultiPartParser):
    """Starlette's parser, with the one file of the form written to `path` instead of the temporary folder."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], path: Path) -> None:
        super().__init__(headers, stream, max_files=1, max_fields=_MOST_FIELDS)
        self._path = path

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is not None:
            part.file.file.close()
            # As the temporary folder may well be a part of the memory, as it is in the container.
            opened = self._path.open("w+b")
            self._files_to_close_on_error.append(opened)  # type: ignore[arg-type]
            part.file = UploadFile(opened, size=0, filename=part.file.filename, headers=part.file.headers)
