"""Fine-tuning: upload a dataset, follow the job, cancel it."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel

from app import uuid7
from app.api.disconnect import Wanted, client_of
from app.errors import ClosingError, DatasetError, InvalidRequestError, QueueUnavailableError, documented
from app.jobs import intake
from app.jobs.folder import JobFolder
from app.jobs.job import Form, Job
from app.jobs.job import Request as JobRequest
from app.registry import PREFERRED
from app.service import Service, ServiceDep
from training import artifact, recipe, screening
from training.errors import InputError

router = APIRouter(prefix="/finetune", tags=["finetune"])

_KEYS = uuid.UUID("6f2d1f0e-8a0b-4f0e-9d5b-1c3f0a7f2b11")  # namespace of the ids made from Idempotency-Key
# Of their own: what waits for a thread of the common ones, to promote say, does not wait until archives are read.
_SCREENING = ThreadPoolExecutor(2, "screen")
_LOOK_SECONDS = 0.5
_LOG_BYTES = 200_000
_MOST_OFFSET = 2**31 - 1  # databases know no integers beyond 64 bits, and clients perhaps none beyond 32
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [intake.FIELD, "name"],
                    "properties": {
                        intake.FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": "A .zip, .tar, .tar.gz or .tar.xz of class folders: cat/1.jpg. Folders "
                            "train/ and test/ (or val/) may lie above them. Or the text `feedback`: the labelled "
                            "predictions of the model `name`; `classes` is then `add` unless said otherwise.",
                        }
                    }
                    | Form.model_json_schema()["properties"],
                }
            }
        },
    }
}


class Accepted(BaseModel):
    """A job that was accepted."""

    id: str
    status: str


class Jobs(BaseModel):
    """Jobs, the newest first."""

    jobs: list[Job]


def _find(service: ServiceDep, job: str) -> Job:
    return service.jobs.get(job)


JobDep = Annotated[Job, Depends(_find)]


@router.post(
    "",
    status_code=202,
    summary="Fine-tune a model",
    responses=documented(409, 413, 415, 422, 503, 507),
    openapi_extra=_BODY,
)
async def submit(
    request: Request,
    response: Response,
    service: ServiceDep,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="Requests that repeat it are one job.")
    ] = None,
) -> Accepted:
    """Send an archive of class folders, or have one made of labelled predictions by dataset=feedback.

    What can be seen at once is answered at once: 422 lists every problem.
    """
    # Ids sort by time, which the queue goes by for jobs of the same second.
    job = str(uuid.uuid5(_KEYS, idempotency_key)) if idempotency_key else uuid7.new()
    async with intake.receive(request, service.settings.data_dir) as upload:
        # Asked before feedback is gathered, as the labels that the job was made of may be gone. What a job starts from,
        # and how it is screened, is no part of what was asked for.
        found = await asyncio.to_thread(service.jobs.find, job, _asked(upload, None)) if idempotency_key else None
        accepted = found or await _accept(request, service, job, upload)
    response.headers["Location"] = f"{request.scope.get('root_path', '')}{router.prefix}/{accepted.id}"
    return Accepted(id=accepted.id, status=accepted.status)


@router.get("", summary="All jobs", responses=documented(503))
def list_jobs(
    service: ServiceDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=_MOST_OFFSET)] = 0,
) -> Jobs:
    """List the jobs, the newest first."""
    return Jobs(jobs=service.jobs.newest(limit, offset))


@router.get("/{job}", summary="One job", responses=documented(404, 503))
def get_job(found: JobDep) -> Job:
    """Show how far a job has come, and what came out of it."""
    return found


@router.get("/{job}/events", summary="Follow a job", response_class=EventSourceResponse, responses=documented(404, 503))
async def events(service: ServiceDep, found: JobDep) -> AsyncIterator[Job]:
    """Send the job whenever it has changed, as Server-Sent Events, until it ends."""
    yield found
    while not found.ended and not service.stopping.is_set():
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            now = await asyncio.to_thread(service.jobs.get, found.id)
        except QueueUnavailableError:
            return  # clients of Server-Sent Events connect anew by themselves
        if now != found:
            yield now
        found = now


@router.get("/{job}/log", summary="A job's log", response_class=PlainTextResponse, responses=documented(404, 503))
def log(service: ServiceDep, found: JobDep) -> str:
    """Show the end of what the training process has written."""
    path = JobFolder(service.settings.data_dir, found.id).log
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return file.read().decode(errors="replace")


@router.delete("/{job}", status_code=202, summary="Cancel a job", responses=documented(404, 409, 503))
def cancel(service: ServiceDep, job: str) -> Job:
    """Cancel a job that waits or runs. What was in production stays there."""
    return service.jobs.cancel(job)


async def _accept(request: Request, service: Service, job: str, upload: intake.Upload) -> Job:
    if upload.gathered:
        upload = await intake.gather(upload, service.recorder.store if service.recorder else None)
    start = await asyncio.to_thread(_start, service, upload.form)
    await _screen(request, service, upload, start)
    return await asyncio.to_thread(_submit, service, job, upload, start)


async def _screen(request: Request, service: Service, upload: intake.Upload, start: str | None) -> None:
    """Raise what is wrong with the archive; given up as soon as the client hangs up or the service is to end."""
    settings = service.settings
    # One class is enough to be added to a model that knows others; left open, it would replace them.
    least = 1 if start and upload.form.classes == "add" else 2
    unwanted = threading.Event()
    try:
        async with Wanted(client_of(request.scope)):
            findings = await asyncio.get_running_loop().run_in_executor(
                _SCREENING,
                screening.screen,
                upload.folder / upload.archive,
                upload.filename,
                settings.max_dataset_files,
                settings.max_pixels,
                least,
                lambda: unwanted.is_set() or service.stopping.is_set(),
            )
    finally:
        unwanted.set()
    if findings is None:
        raise ClosingError("The service is shutting down. Send the request again.", 1)
    if findings.errors:
        raise DatasetError(findings.errors)


def _submit(service: Service, job: str, upload: intake.Upload, start: str | None) -> Job:
    JobFolder(service.settings.data_dir, job).adopt(upload.folder, upload.archive)
    return service.jobs.submit(job, _asked(upload, start))


def _asked(upload: intake.Upload, start: str | None) -> JobRequest:
    return JobRequest(
        **upload.form.model_dump(),
        start=start,
        dataset=upload.archive,
        dataset_sha256=upload.sha256,
        gathered=upload.gathered,
        warnings=upload.warnings,
    )


def _start(service: Service, form: Form) -> str | None:
    """The version that the job starts from, NAME@VERSION; None if it is to train from scratch."""
    if form.base and form.recipe:
        raise InvalidRequestError("Name a base to fine-tune, or a recipe to train from scratch by, not both.")
    if form.recipe:
        if form.recipe not in recipe.names():  # a recipe's path is for the command line only
            raise InvalidRequestError(f"There is no recipe {form.recipe!r}. Recipes: {', '.join(recipe.names())}.")
        return None
    try:
        name, version = artifact.resolve(service.settings.models_dir, form.base or _default_base(service, form.name))
    except InputError as error:
        raise InvalidRequestError(str(error)) from error
    return f"{name}@{version}"


def _default_base(service: Service, name: str) -> str:
    settings = service.settings
    there = artifact.names(settings.models_dir)
    for model in (name, settings.default_model, PREFERRED, *there):
        if model in there and artifact.read_aliases(settings.models_dir, model).production:
            return model
    raise InvalidRequestError(
        f"There is no model to start from. Name a recipe to train from scratch by: {', '.join(recipe.names())}."
    )
