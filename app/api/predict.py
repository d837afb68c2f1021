"""Classification: pictures in, classes and their probabilities out."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from urllib.parse import parse_qsl

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, ValidationError

from app.api.disconnect import Wanted, client_of
from app.entrance import ticket_of
from app.errors import Problem, RetryableError, documented, problem
from app.loader import Served
from app.service import Service
from app.serving.admission import Ticket
from app.serving.engine import Probabilities
from app.serving.upload import FIELD, Upload, read_uploads
from app.telemetry import Timing, prediction_of
from app.trial import Trial
from training.picture import MEDIA_TYPES

_DEADLINE = "X-Request-Timeout-Ms"


class Asked(BaseModel, frozen=True):
    """What a request says beside its pictures."""

    model: str | None = Field(None, description="Name of the model; the default one if left out.")
    version: int | None = Field(None, description="Version; the one in production if left out.")
    top_k: int = Field(5, ge=1, description="How many classes to name for each picture.")


class _Route(APIRoute):
    """A route whose endpoint takes the request, reads it itself and makes the answer.

    Dependencies, validation of the answer and its serialisation by FastAPI take longer than all else that is done for
    a small picture beside the network itself.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter(tags=["predict"], route_class=_Route)

_BINARY = {"type": "string", "format": "binary"}
_DESCRIPTION: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
        for name, schema in Asked.model_json_schema()["properties"].items()
    ]
    + [
        {
            "name": _DEADLINE,
            "in": "header",
            "required": False,
            "description": "Milliseconds after which the answer is of no use.",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {
                            "type": "array",
                            "minItems": 1,
                            "items": _BINARY,
                            "description": "One picture, or several: repeat the field.",
                        }
                    },
                }
            }
        }
        | {media_type: {"schema": _BINARY} for media_type in MEDIA_TYPES.values()},
    },
}


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float = Field(description="0 to 1.")


class Prediction(BaseModel):
    """The answer for one picture."""

    filename: str | None = Field(description="As it was sent; null for a picture that was the body itself.")
    label: str = Field(description="The most probable class.")
    probability: float = Field(description="Its probability, 0 to 1.")
    top: list[ClassProbability] = Field(description="The most probable classes, best first.")
    id: str | None = Field(
        None,
        description="What to name this prediction by in `POST /feedback`. Left out unless the service keeps pictures "
        "(APP_KEEP_FEEDBACK), and while it cannot store any.",
    )


class Failure(BaseModel):
    """What takes the place of the answer for a picture of a batch that could not be classified."""

    filename: str | None = Field(description="As it was sent.")
    error: Problem


class Predictions(BaseModel):
    """The answers for all pictures of a request, in their order."""

    model: str
    version: int
    predictions: list[Prediction | Failure]


@router.post(
    "/predict",
    summary="Classify pictures",
    response_model=Predictions,
    responses=documented(404, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=_DESCRIPTION,
)
async def predict(request: Request) -> Response:
    """Send one picture or several as a multipart form (field `file`, repeated), or one picture as the body itself.

    JPEG, PNG, WebP, GIF (its first frame) and BMP are read. In a batch, a picture that cannot be read costs only its
    own entry, which carries `error` instead of `label`; alone, it is the answer's status.
    """
    asked = _read_query(request.scope["query_string"])
    deadline = _read_deadline(request)
    service: Service = request.app.state.service
    ticket = ticket_of(request.scope)
    with await service.registry.get(asked.model, asked.version) as served:
        trial = service.registry.trial(served) if asked.version is None else None
        uploads = await read_uploads(request, service.settings.max_files, ticket)
        ticket.begin(len(uploads))
        timings = prediction_of(request.scope).begin(served.name, served.version, len(uploads))
        work = _Work(service, served, trial, ticket, deadline)
        async with Wanted(client_of(request.scope), deadline):
            rows = await work.classify_all(uploads, timings)
    entries = [_entry(served, upload, row, asked.top_k) for upload, row in zip(uploads, rows, strict=True)]
    if service.recorder:
        service.recorder.keep(served.name, served.version, uploads, entries)
    answer = {"model": served.name, "version": served.version, "predictions": entries}
    return Response(orjson.dumps(answer), media_type="application/json")


@lru_cache(maxsize=256)  # clients ask the same again and again
def _read_query(query: bytes) -> Asked:
    try:
        return Asked.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise _invalid("query", error) from error


def _read_deadline(request: Request) -> float:
    """The time of the event loop's clock at which the client gives up."""
    given = request.headers.get(_DEADLINE)
    if given is None:
        return math.inf
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = math.nan
    if not milliseconds > 0:
        raise RequestValidationError(
            [{"loc": ("header", _DEADLINE), "input": given, "msg": "Input should be a number above 0"}]
        )
    return asyncio.get_running_loop().time() + milliseconds / 1000


def _invalid(place: str, error: ValidationError) -> RequestValidationError:
    return RequestValidationError([entry | {"loc": (place, *entry["loc"])} for entry in error.errors()])


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done for the pictures of one request."""

    service: Service
    served: Served
    trial: Trial | None
    ticket: Ticket
    deadline: float

    async def classify_all(
        self, uploads: Sequence[Upload], timings: Sequence[Timing]
    ) -> Sequence[Probabilities | BaseException]:
        if len(uploads) == 1:
            return [await self._classify(uploads[0], timings[0])]
        return await asyncio.gather(*map(self._classify, uploads, timings), return_exceptions=True)

    async def _classify(self, upload: Upload, timing: Timing) -> Probabilities:
        decoder, size = self.service.decoder, self.served.manifest.input_size
        try:
            pixels = decoder.decode_small(upload.data, size, timing)
            if pixels is None:
                with self.served.batcher.coming:
                    pixels = await decoder.decode_large(upload.data, size, timing)
            if self.trial:
                again = partial(decoder.decode, upload.data)
                return await self.trial.predict(self.served, pixels, timing, again, self.deadline)
            return await self.served.batcher.predict(pixels, timing, self.deadline)
        finally:
            self.ticket.done()


def _entry(served: Served, upload: Upload, outcome: Probabilities | BaseException, top_k: int) -> dict[str, Any]:
    """A `Prediction` or a `Failure`, as it is sent."""
    if isinstance(outcome, Exception) and not isinstance(outcome, RetryableError):
        return {"filename": upload.filename, "error": problem(outcome).model_dump()}
    if isinstance(outcome, BaseException):
        raise outcome  # not the fault of this picture: the whole request can be sent again
    classes = served.manifest.classes
    best = (-outcome).argsort(kind="stable")[:top_k]
    values = outcome[best].tolist()
    top = [{"label": classes[index], "probability": value} for index, value in zip(best.tolist(), values, strict=True)]
    return {"filename": upload.filename, **top[0], "top": top}
