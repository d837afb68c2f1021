"""Classification: pictures in, classes and their probabilities out."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from app.api.disconnect import unless_gone
from app.errors import Problem, RetryableError, documented, problem
from app.loader import Served
from app.service import Service, ServiceDep
from app.serving.engine import Probabilities
from app.serving.upload import FIELD, Upload, read_uploads
from app.telemetry import Timing, prediction_of
from app.trial import Trial
from training.picture import MEDIA_TYPES

router = APIRouter(tags=["predict"])

_BINARY = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
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
    }
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
    responses=documented(404, 413, 415, 422, 429, 500, 503),
    openapi_extra=_BODY,
)
async def predict(
    request: Request,
    service: ServiceDep,
    model: Annotated[str | None, Query(description="Name of the model; the default one if left out.")] = None,
    version: Annotated[int | None, Query(description="Version; the one in production if left out.")] = None,
    top_k: Annotated[int, Query(ge=1, description="How many classes to name for each picture.")] = 5,
) -> Predictions:
    """Send one picture or several as a multipart form (field `file`, repeated), or one picture as the body itself.

    JPEG, PNG, WebP, GIF (its first frame) and BMP are read. In a batch, a picture that cannot be read costs only its
    own entry, which carries `error` instead of `label`; alone, it is the answer's status.
    """
    with service.admission.enter() as ticket, await service.registry.get(model, version) as served:
        uploads = await read_uploads(request, service.settings.max_files)
        ticket.grow(len(uploads))
        trial = service.registry.trial(served) if version is None else None
        timings = prediction_of(request.scope).begin(served.name, served.version, len(uploads))
        rows = await unless_gone(request.receive, _classify_all(service, served, trial, uploads, timings))
    entries = [_entry(served, upload, row, top_k) for upload, row in zip(uploads, rows, strict=True)]
    return Predictions(model=served.name, version=served.version, predictions=entries)


async def _classify_all(
    service: Service, served: Served, trial: Trial | None, uploads: Sequence[Upload], timings: Sequence[Timing]
) -> Sequence[Probabilities | BaseException]:
    return await asyncio.gather(
        *(_classify(service, served, trial, *picture) for picture in zip(uploads, timings, strict=True)),
        return_exceptions=len(uploads) > 1,
    )


async def _classify(
    service: Service, served: Served, trial: Trial | None, upload: Upload, timing: Timing
) -> Probabilities:
    pixels = await service.decoder.decode(upload.data, served.manifest.input_size, timing)
    if trial:
        return await trial.predict(served, pixels, timing, partial(service.decoder.decode, upload.data))
    return await served.batcher.predict(pixels, timing)


def _entry(served: Served, upload: Upload, outcome: Probabilities | BaseException, top_k: int) -> Prediction | Failure:
    if isinstance(outcome, Exception) and not isinstance(outcome, RetryableError):
        return Failure(filename=upload.filename, error=problem(outcome))
    if isinstance(outcome, BaseException):
        raise outcome  # not the fault of this picture: the whole request can be sent again
    best = np.argsort(-outcome, kind="stable")[:top_k]
    classes = served.manifest.classes
    top = [ClassProbability(label=classes[index], probability=float(outcome[index])) for index in best]
    return Prediction(filename=upload.filename, label=top[0].label, probability=top[0].probability, top=top)
