"""The service's errors, and how every error becomes an RFC 9457 problem document."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import Response
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from training.errors import CorruptImageError, ImageError, ImageTooLargeError, UnsupportedImageError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="What kind of problem it is: a name that programs can compare.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong with this request, and what to do.")


class ServiceError(Exception):
    """Root of every error that this package raises on purpose. Its text is shown to the client."""

    status = 500
    kind = "service-error"
    title = "The service failed"

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the answer."""
        return {}

    @property
    def members(self) -> Mapping[str, Any]:
        """Members of the problem document beside the standard ones (RFC 9457, section 3.2)."""
        return {}


class MalformedRequestError(ServiceError):
    """What was sent is not a request of HTTP/1.1."""

    status = 400
    kind = "malformed-request"
    title = "Malformed request"


class InvalidRequestError(ServiceError):
    """The request cannot be understood as it is."""

    status = 422
    kind = "invalid-request"
    title = "Invalid request"


class UnsupportedMediaError(ServiceError):
    """The body is of a type that this address does not take."""

    status = 415
    kind = "unsupported-media-type"
    title = "Unsupported media type"


class TooManyFilesError(ServiceError):
    """One request holds more files than are taken at once."""

    status = 413
    kind = "too-many-files"
    title = "Too many files"


class BodyTooLargeError(ServiceError):
    """The request body is larger than the limit."""

    status = 413
    kind = "body-too-large"
    title = "Request body too large"


class TooSlowError(ServiceError):
    """The request takes too long to arrive; its connection is closed."""

    status = 408
    kind = "too-slow"
    title = "Request too slow"


class HeadTooLargeError(ServiceError):
    """The request's address and headers are larger than any that make sense; its connection is closed."""

    status = 431
    kind = "head-too-large"
    title = "Request head too large"


class UnauthorizedError(ServiceError):
    """The request carries no key, or a wrong one."""

    status = 401
    kind = "unauthorized"
    title = "API key needed"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class ForeignPageError(ServiceError):
    """A browser sends the request for a page that is not the service's own."""

    status = 403
    kind = "foreign-page"
    title = "Request of another page"


class UnknownHostError(ServiceError):
    """The request is for a name that the service was not told of."""

    status = 421
    kind = "unknown-host"
    title = "Unknown host"


class UnknownModelError(ServiceError):
    """No model, or no version of it, has that name."""

    status = 404
    kind = "unknown-model"
    title = "Unknown model or version"


class DatasetError(ServiceError):
    """The archive cannot be trained on.

    Args:
        problems: one sentence each, all that were found.
    """

    status = 422
    kind = "invalid-dataset"
    title = "The dataset cannot be used"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    @property
    def members(self) -> Mapping[str, Any]:
        return {"errors": list(self.problems)}


class UnknownJobError(ServiceError):
    """No job has that id."""

    status = 404
    kind = "unknown-job"
    title = "Unknown job"


class JobEndedError(ServiceError):
    """The job has come to its end, and can no longer be cancelled."""

    status = 409
    kind = "job-ended"
    title = "The job has ended"


class KeyReusedError(ServiceError):
    """The idempotency key belongs to another request."""

    status = 422
    kind = "key-reused"
    title = "Idempotency key used for another request"


class DiskFullError(ServiceError):
    """There is no room for what was sent."""

    status = 507
    kind = "disk-full"
    title = "Disk full"


class UnknownCanaryError(ServiceError):
    """No version of the model was ever on trial."""

    status = 404
    kind = "unknown-canary"
    title = "No canary"


class FeedbackOffError(ServiceError):
    """Nothing is kept that could be labelled."""

    status = 409
    kind = "feedback-off"
    title = "Feedback is off"

    def __init__(self) -> None:
        super().__init__("Predictions are not kept here. Start the service with APP_KEEP_FEEDBACK=true to keep them.")


class UnknownPredictionError(ServiceError):
    """No prediction with that id is kept."""

    status = 404
    kind = "unknown-prediction"
    title = "Unknown prediction"


class UnusableVersionError(ServiceError):
    """The version is there and cannot serve; what served before goes on."""

    status = 409
    kind = "unusable-version"
    title = "Version cannot be used"


class ConflictError(ServiceError):
    """What was asked for does not fit the state that the model is in."""

    status = 409
    kind = "conflict"
    title = "Not possible in this state"


class StorageError(ServiceError):
    """A change cannot be written to disk, and was not made."""

    kind = "storage-failed"
    title = "Change not written"


class RetryableError(ServiceError):
    """The same request may well succeed later.

    Args:
        detail: what is wrong.
        retry_after: seconds to wait before the next try.
    """

    status = 503
    kind = "unavailable"
    title = "Unavailable for now"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after)}


class ModelUnavailableError(RetryableError):
    """The model is there, but cannot be used."""

    kind = "model-unavailable"
    title = "Model unavailable"


class NotReadyError(RetryableError):
    """The service is still starting."""

    kind = "not-ready"
    title = "Not ready"


class ClosingError(RetryableError):
    """The service is shutting down, or has unloaded the model."""

    kind = "closing"
    title = "Shutting down"


class OverloadedError(RetryableError):
    """More pictures are in work than the limit allows."""

    status = 429
    kind = "overloaded"
    title = "Too many pictures in work"


class QueueUnavailableError(RetryableError):
    """The database of the jobs cannot be reached."""

    kind = "queue-unavailable"
    title = "Jobs unavailable"


class FeedbackUnavailableError(RetryableError):
    """What was kept of predictions cannot be read or changed."""

    kind = "feedback-unavailable"
    title = "Feedback unavailable"


class DeadlineError(RetryableError):
    """The time that the client allowed for its request is over, or the answer cannot be there in time."""

    status = 504
    kind = "deadline-exceeded"
    title = "Too late"

    def __init__(self) -> None:
        super().__init__(
            "The answer would come later than X-Request-Timeout-Ms allows. Allow more or send it again.", 1
        )


class InferenceError(ServiceError):
    """The network failed on one picture."""

    kind = "inference-failed"
    title = "The model failed on this picture"


HUNG_UP = 499  # what nginx's log calls a request whose client did not wait for the answer

EXPECTED = (ServiceError, ImageError, RequestValidationError, ClientDisconnect)  # no fault of the service

_IMAGE_PROBLEMS: Mapping[type[ImageError], tuple[int, str, str]] = {
    UnsupportedImageError: (415, "unsupported-image", "Not a picture that can be read"),
    CorruptImageError: (422, "corrupt-image", "Damaged picture"),
    ImageTooLargeError: (413, "image-too-large", "Picture too large"),
}


def problem(error: Exception) -> Problem:
    """Describe an error for the client. One that nobody foresaw is logged, and tells nothing of the inside."""
    if isinstance(error, ServiceError):
        return _problem(error.status, error.kind, error.title, str(error))
    if isinstance(error, ImageError):
        return _problem(*_IMAGE_PROBLEMS[type(error)], str(error))
    log.error("Unexpected error", exc_info=error)
    return _internal()


def respond(error: Exception) -> Response:
    """Make the answer to a request that ended with an error."""
    if isinstance(error, ServiceError):
        return _response(problem(error), error.headers, **error.members)
    if isinstance(error, RequestValidationError):
        found = [_explain(entry) for entry in error.errors()]
        document = _problem(422, "invalid-request", "Invalid request", "; ".join(found) + ". See /docs.")
        return _response(document, {}, errors=found)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=HUNG_UP)  # nobody reads this
    return _response(problem(error), {})


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation's OpenAPI entry says about its problem answers, by status."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Make every error of an application a problem document."""
    for kind in EXPECTED:
        app.add_exception_handler(kind, _expected)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _problem(status: int, kind: str, title: str, detail: str) -> Problem:
    return Problem(type=f"urn:refit:problem:{kind}", title=title, status=status, detail=detail)


def _internal() -> Problem:
    detail = "The service failed on this request. Its log says why."
    return _problem(500, "internal-error", "Internal error", detail)


def _response(document: Problem, headers: Mapping[str, str] | None, **members: Any) -> Response:
    return Response(orjson.dumps(document.model_dump() | members), document.status, headers, MEDIA_TYPE)


async def _expected(_: Request, error: Exception) -> Response:
    return respond(error)


async def _unexpected(_: Request, __: Exception) -> Response:
    # Starlette raises the error on after this, and the server logs it: it is not logged here a second time.
    return _response(_internal(), {})


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for this type only)
    phrase = HTTPStatus(error.status_code).phrase
    details = {
        404: f"There is nothing at {request.url.path}. See /docs for what there is.",
        405: f"{request.method} is not possible at {request.url.path}. See /docs for what is.",
    }
    detail = error.detail if error.detail != phrase else details.get(error.status_code, phrase)
    document = Problem(type="about:blank", title=phrase, status=error.status_code, detail=detail)
    allowed = _allowed(request) if error.status_code == 405 else ""
    return _response(document, {"Allow": allowed} if allowed else error.headers)


def _allowed(request: Request) -> str:
    """The methods that routes take at a request's path, as the header `Allow` lists them; none for a mounted file.

    The framework's own error names those of one route only, and a path may have several.
    """
    methods = {
        method
        for route in iter_route_contexts(request.app.routes)
        if route.methods and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods
    }
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))


def _explain(entry: Mapping[str, Any]) -> str:
    place: Sequence[Any] = entry["loc"]
    return f"{place[0]} parameter '{'.'.join(map(str, place[1:]))}' is {entry['input']!r}: {entry['msg']}"
