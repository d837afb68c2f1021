"""Request bodies: the pictures in a multipart form, or one picture as the body itself."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.errors import InvalidRequestError, TooManyFilesError, UnsupportedMediaError

FIELD = "file"

_HOW = (
    f"Send a multipart form with the picture in the field '{FIELD}' (curl -F {FIELD}=@picture.png), or the picture "
    "itself with its own content type, such as image/png."
)


@dataclass(frozen=True)
class Upload:
    """One picture, encoded. `filename` is None where the client gave none."""

    filename: str | None
    data: bytes


async def read_uploads(request: Request, max_files: int) -> list[Upload]:
    """Read the pictures that a request carries, in their order; there is at least one.

    Raises:
        UnsupportedMediaError: the content type is neither a multipart form nor a picture.
        TooManyFilesError: the form has more than `max_files` parts.
        InvalidRequestError: there is no picture in it, or it is malformed; the message says what was found.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, max_files)
    if kind.startswith("image/"):
        data = await request.body()
        if not data:
            raise InvalidRequestError(f"The request body is empty. {_HOW}")
        return [Upload(None, data)]
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        raise InvalidRequestError(f"The request has no body. {_HOW}")
    raise UnsupportedMediaError(f"The content type is {kind or 'missing'}. {_HOW}")


async def _read_form(request: Request, max_files: int) -> list[Upload]:
    try:
        form = await _Form(request.headers, request.stream(), max_files).parse()
    except MultiPartException as error:
        raise InvalidRequestError(
            f"The multipart form cannot be read: {error.message} Let your HTTP library make the form and its header."
        ) from error
    try:
        return [await _read_field(name, value) for name, value in form.multi_items()] or _nothing()
    finally:
        await form.close()


async def _read_field(name: str, value: UploadFile | str) -> Upload:
    if name != FIELD:
        raise InvalidRequestError(
            f"The form has a field '{name}'; pictures are expected in the field '{FIELD}', which can be repeated."
        )
    if isinstance(value, str):
        raise InvalidRequestError(
            f"The field '{name}' holds text and no file. With curl, write -F {FIELD}=@picture.png, with the @."
        )
    return Upload(value.filename or None, await value.read())


def _nothing() -> list[Upload]:
    raise InvalidRequestError(f"The form is empty. Put at least one picture into the field '{FIELD}'.")


class _Form(MultiPartParser):
    """Starlette's parser, with a count of its own (Starlette's own ends in the same 400 as a malformed form does)."""

    # Files stay in memory: the limit on the body bounds them, and a disk is slower.
    spool_max_size = 0

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], max_parts: int) -> None:
        super().__init__(headers, stream, max_files=max_parts, max_fields=max_parts)
        self._parts = 0
        self._max_parts = max_parts

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise TooManyFilesError(
                f"The request has more than {self._max_parts} files. Divide them among several requests."
            )
        super().on_part_begin()
