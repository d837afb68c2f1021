"""The queue as the service sees it: it adds jobs, looks at them and cancels them. Workers run them (`worker`)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, WorkflowStatus

from app.errors import JobEndedError, KeyReusedError, QueueUnavailableError, UnknownJobError
from app.jobs.folder import JobFolder
from app.jobs.job import Job, JobFailure, Request, Result, Status
from app.settings import Settings

APPLICATION = "refit"
QUEUE = "finetune"
WORKFLOW = "finetune"
# JSON, so that nothing in the database can run code, as a pickle can.
SERIALIZER = DBOSPortableJSONSerializer()
UNFINISHED = ["ENQUEUED", "DELAYED", "PENDING"]

_RETRY_SECONDS = 5
_STATUS: dict[str, Status] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}


def database_url(settings: Settings) -> str:
    """Address of the jobs' database; the folder of the default one is made."""
    if settings.database_url:
        return settings.database_url.get_secret_value()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{settings.data_dir.resolve()}/jobs.sqlite"


class JobQueue:
    """Connects on first use, so that the service serves pictures whether or not the database can be reached.

    All methods block, may be called from any thread, and raise `QueueUnavailableError` without the database.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: DBOSClient | None = None
        self._lock = threading.Lock()

    def submit(self, job: str, request: Request) -> Job:
        """Add a job, or give the one that has this id already.

        Raises:
            KeyReusedError: the job with this id was asked for by another request.
        """
        with self._connected() as client:
            client.enqueue(
                {
                    "workflow_name": WORKFLOW,
                    "queue_name": QUEUE,
                    "workflow_id": job,
                    # Jobs of one model run one after another, on however many machines.
                    "queue_partition_key": request.name,
                },
                request.model_dump(mode="json"),
            )
            found = client.list_workflows(workflow_ids=[job])[0]
        if _request(found).dataset != request.dataset:  # a request with the same key came in between
            JobFolder(self._settings.data_dir, job).discard(request.dataset)
        return self._repeated(found, request)

    def find(self, job: str, request: Request) -> Job | None:
        """The job that has this id already; None if there is none.

        Raises:
            KeyReusedError: it was asked for by another request.
        """
        with self._connected() as client:
            found = client.list_workflows(workflow_ids=[job], name=WORKFLOW)
        return self._repeated(found[0], request) if found else None

    def get(self, job: str) -> Job:
        """A job as it is now.

        Raises:
            UnknownJobError: there is none with this id.
        """
        with self._connected() as client:
            found = client.list_workflows(workflow_ids=[job], name=WORKFLOW)
        if not found:
            raise UnknownJobError(f"There is no job {job!r}. GET /finetune lists them.")
        return self._job(found[0])

    def newest(self, limit: int, offset: int) -> list[Job]:
        """Jobs, the newest first."""
        with self._connected() as client:
            found = client.list_workflows(name=WORKFLOW, sort_desc=True, limit=limit, offset=offset)
        return [self._job(status) for status in found]

    def has_unfinished(self) -> bool:
        """Whether any job waits or runs, here or elsewhere."""
        with self._connected() as client:
            return bool(client.list_workflows(name=WORKFLOW, status=UNFINISHED, limit=1, load_input=False))

    def cancel(self, job: str) -> Job:
        """Cancel a job; a worker that runs it ends it within a second. Cancelling again changes nothing.

        Raises:
            UnknownJobError: there is none with this id.
            JobEndedError: it has succeeded or failed.
        """
        self.get(job)
        with self._connected() as client:
            client.cancel_workflow(job)
        cancelled = self.get(job)
        if cancelled.status != "cancelled":
            raise JobEndedError(f"The job {job} has {cancelled.status} and cannot be cancelled.")
        return cancelled

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            if self._client:
                self._client.destroy()
            self._client = None

    @contextmanager
    def _connected(self) -> Iterator[DBOSClient]:
        try:
            with self._lock:
                client = self._client = self._client or _connect(database_url(self._settings))
            yield client
        except (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError, OSError) as error:
            raise QueueUnavailableError(
                f"The database of the jobs cannot be used ({type(error).__name__}). Send the request again later; the "
                "service's log and APP_DATABASE_URL say more.",
                _RETRY_SECONDS,
            ) from error

    def _repeated(self, found: WorkflowStatus, request: Request) -> Job:
        if not request.repeats(_request(found)):
            raise KeyReusedError(
                "This Idempotency-Key was sent before with another archive or other fields. Use a new key."
            )
        return self._job(found)

    def _job(self, found: WorkflowStatus) -> Job:
        state = JobFolder(self._settings.data_dir, found.workflow_id).read_state()
        status = _STATUS[found.status]
        request = _request(found)
        return Job(
            id=found.workflow_id,
            name=request.name,
            status=status,
            created=datetime.fromtimestamp((found.created_at or 0) / 1000, UTC).isoformat(timespec="seconds"),
            progress=state.progress,
            warnings=[*request.warnings, *state.warnings],
            result=Result.model_validate(found.output) if status == "succeeded" else None,
            error=_failure(found) if status == "failed" else None,
        )


def _connect(url: str) -> DBOSClient:
    DBOS.migrate(url)  # the service may well be there before the first worker
    return DBOSClient(
        system_database_url=url, serializer=SERIALIZER, application_name=APPLICATION, retry_connection_errors=False
    )


def _request(found: WorkflowStatus) -> Request:
    assert found.input  # noqa: S101 (jobs are never listed without it)
    return Request.model_validate(found.input["args"][0])


def _failure(found: WorkflowStatus) -> JobFailure:
    if found.error is None:
        return JobFailure(detail="Every worker that ran the job died. The workers' log says why.", errors=[])
    return JobFailure(detail=str(found.error), errors=getattr(found.error, "data", None) or [])
