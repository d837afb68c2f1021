"""Request bodies: the pictures in a multipart form, or one picture as the body itself."""

from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from app.errors import InvalidRequestError, TooManyFilesError, UnsupportedMediaError
from app.serving import multipart
from app.serving.admission import Ticket
from app.serving.multipart import Part

FIELD = "file"

_HOW = (
    f"Send a multipart form with the picture in the field '{FIELD}' (curl -F {FIELD}=@picture.png), or the picture "
    "itself with its own content type, such as image/png."
)


@dataclass(frozen=True, slots=True)
class Upload:
    """One picture, encoded. `filename` is None where the client gave none."""

    filename: str | None
    data: bytes


async def read_uploads(request: Request, max_files: int, ticket: Ticket) -> list[Upload]:
    """Read the pictures that a request carries, in their order; there is at least one.

    Raises:
        UnsupportedMediaError: the content type is neither a multipart form nor a picture.
        TooManyFilesError: the form has more than `max_files` parts.
        InvalidRequestError: there is no picture in it, or it is malformed; the message says what was found.
        OverloadedError: there is no room for a body that is longer than announced.
        starlette.requests.ClientDisconnect: the client hung up.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data" or kind.startswith("image/"):
        data = await _body(request.receive, ticket)
        if not data:
            raise InvalidRequestError(f"The request body is empty. {_HOW}")
        return [Upload(None, data)] if kind.startswith("image/") else _read_form(data, content_type, max_files)
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        raise InvalidRequestError(f"The request has no body. {_HOW}")
    raise UnsupportedMediaError(f"The content type is {kind or 'missing'}. {_HOW}")


async def _body(receive: Receive, ticket: Ticket) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        ticket.read(size)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _read_form(body: bytes, content_type: str, max_files: int) -> list[Upload]:
    uploads: list[Upload] = []
    for part in multipart.parse(body, content_type):
        if len(uploads) == max_files:
            raise TooManyFilesError(f"The request has more than {max_files} files. Divide them among several requests.")
        uploads.append(_upload(part))
    if not uploads:
        raise InvalidRequestError(f"The form is empty. Put at least one picture into the field '{FIELD}'.")
    return uploads


def _upload(part: Part) -> Upload:
    if part.name != FIELD:
        raise InvalidRequestError(
            f"The form has a field '{part.name}'; pictures are expected in the field '{FIELD}', which can be repeated."
        )
    if part.filename is None:
        raise InvalidRequestError(
            f"The field '{part.name}' holds text and no file. With curl, write -F {FIELD}=@picture.png, with the @."
        )
    return Upload(part.filename or None, part.data)
