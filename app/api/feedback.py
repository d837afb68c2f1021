"""Feedback on predictions: the right labels, and which predictions are most in need of one."""

import asyncio
import logging
import time
from datetime import UTC, datetime
from pathlib import Path as Folder
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import uuid7
from app.api.body import json_body, read_json
from app.errors import FeedbackOffError, documented
from app.feedback import snapshot
from app.feedback.label import Label
from app.feedback.store import Prediction, Store
from app.service import ServiceDep
from training import artifact
from training.errors import ArtifactError
from training.picture import MEDIA_TYPES

log = logging.getLogger(__name__)

router = APIRouter(prefix="/feedback", tags=["feedback"])

# Pictures are written soon after the answer, perhaps by another process than the one that is asked for them.
_WRITE_SECONDS = 3.0
_LOOK_SECONDS = 0.05
# What a person's browser shows is not kept there beyond its deletion here, and is a picture whatever it holds.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


class Feedback(BaseModel):
    """The right label of a prediction."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="Of the prediction, as POST /predict gave it.")
    label: Label = Field(description="The right class. One that the model does not know is how it learns a new one.")


class Labelled(BaseModel):
    """A prediction that has its right label."""

    id: str
    model: str
    predicted: str = Field(description="What the model said.")
    label: str = Field(description="What is right.")


class Queued(BaseModel):
    """A prediction that waits for its right label."""

    id: str
    model: str
    version: int
    filename: str | None = Field(description="As it was sent.")
    label: str = Field(description="The class that the model took for the most probable one.")
    probability: float = Field(description="Its probability, 0 to 1.")
    created: str = Field(description="When it was answered, ISO 8601.")
    picture: str = Field(description="Where the picture is.")


class Queue(BaseModel):
    """Predictions without a label, the least confident first."""

    queue: list[Queued]


class ModelFeedback(BaseModel):
    """What is kept of one model's predictions."""

    name: str
    unlabelled: int
    labels: dict[str, int] = Field(description="Number of pictures by their right label.")


class Summary(BaseModel):
    """What is kept, and how much of it is allowed."""

    bytes: int
    max_bytes: int
    max_days: float
    models: list[ModelFeedback]


def _store(service: ServiceDep) -> Store:
    if service.recorder is None:
        raise FeedbackOffError()
    return service.recorder.store


StoreDep = Annotated[Store, Depends(_store)]


async def _written(store: StoreDep, prediction: Annotated[str, Path(alias="id")]) -> str:
    await _await_written(store, prediction)
    return prediction


PredictionDep = Annotated[str, Depends(_written)]


@router.post(
    "",
    summary="Say what is right",
    responses=documented(404, 409, 413, 415, 422, 503, 507),
    openapi_extra=json_body(Feedback),
)
async def give(request: Request, service: ServiceDep, store: StoreDep) -> Labelled:
    """Store the right label of a prediction, in place of an earlier one."""
    given = await read_json(request, Feedback)
    await _await_written(store, given.id)
    return await asyncio.to_thread(_label, store, service.settings.models_dir, given, request.scope.get("api_key"))


@router.get("", summary="What is kept", responses=documented(409, 503))
def summarise(store: StoreDep) -> Summary:
    """Count the pictures that are kept, by model and label."""
    models: dict[str, ModelFeedback] = {}
    for name, label, count in store.counts():
        model = models.setdefault(name, ModelFeedback(name=name, unlabelled=0, labels={}))
        if label is None:
            model.unlabelled = count
        else:
            model.labels[label] = count
    return Summary(bytes=store.size(), max_bytes=store.max_bytes, max_days=store.max_days, models=list(models.values()))


@router.get("/queue", summary="What to label next", responses=documented(409, 422, 503))
def list_queue(
    request: Request,
    store: StoreDep,
    model: Annotated[str | None, Query(description="Name of a model; all models if left out.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Queue:
    """List predictions without a label, the least confident first: their labels teach a model most."""
    root = request.scope.get("root_path", "")
    return Queue(queue=[_queued(prediction, root) for prediction in store.queue(model, limit)])


@router.get(
    "/{id}/picture",
    summary="A prediction's picture",
    response_class=Response,
    responses=documented(404, 409, 503) | {200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}},
)
def show_picture(store: StoreDep, prediction: PredictionDep) -> Response:
    """Show the picture as it was sent."""
    picture = store.picture(prediction)
    return Response(picture, media_type=snapshot.kind(picture)[0], headers=_HEADERS)


@router.delete("/{id}", status_code=204, summary="Forget a prediction", responses=documented(404, 409, 503, 507))
def forget(store: StoreDep, prediction: PredictionDep) -> None:
    """Delete a prediction with its picture and label. Versions that were trained on it stay as they are."""
    store.delete(prediction)


async def _await_written(store: Store, prediction: str) -> None:
    """Return when the prediction is there, or should have been for long: then it is not known."""
    made = uuid7.moment(prediction)
    while made and abs(time.time() - made) < _WRITE_SECONDS:
        if await asyncio.to_thread(store.has, prediction):
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _label(store: Store, models: Folder, given: Feedback, api_key: int | None) -> Labelled:
    found = store.get(given.id)
    store.label(given.id, given.label, _classes(models, found), api_key)
    return Labelled(id=found.id, model=found.model, predicted=found.label, label=given.label)


def _classes(models: Folder, prediction: Prediction) -> tuple[str, ...]:
    """What the version knows that a fine-tune would start from."""
    try:
        version = artifact.read_aliases(models, prediction.model).production or prediction.version
        return artifact.read_manifest(artifact.folder(models, prediction.model, version)).classes
    except ArtifactError as error:
        log.warning("The label of %s is not compared with the model's classes: %s", prediction.id, error)
        return ()


def _queued(prediction: Prediction, root: str) -> Queued:
    made = uuid7.moment(prediction.id)
    assert made is not None  # noqa: S101 (the service has made the id itself)
    return Queued(
        **prediction._asdict(),
        created=datetime.fromtimestamp(made, UTC).isoformat(timespec="seconds"),
        picture=f"{root}{router.prefix}/{prediction.id}/picture",
    )
