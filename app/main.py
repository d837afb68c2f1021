"""The application: puts the parts together, starts them and shuts them down."""

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from fastapi import FastAPI, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.types import Receive, Scope, Send

from app import errors
from app.access_log import ACCESS
from app.api import canary, document, feedback, finetune, health, metrics, models, page, predict
from app.connection import State
from app.entrance import Entrance, is_prediction
from app.feedback.recorder import Recorder
from app.feedback.store import Store
from app.jobs.queue import JobQueue
from app.middleware import BodyLimit, Guard, HeadAsGet, Keys, Limit, Origins, check_head
from app.refusal import Refusals
from app.registry import Registry
from app.service import Service
from app.serving.admission import Admission
from app.serving.background import Background, shares_two_processors
from app.serving.engines import Engines
from app.serving.image import Decoder
from app.settings import Settings
from training import machine

log = logging.getLogger(__name__)

_FOLLOW_SECONDS = 1.0
_SWITCH_SECONDS = 0.0005
_GARBAGE_OBJECTS = 20_000  # that were made and not freed since it was looked for last


class App(FastAPI):
    """The application; requests for predictions have an entrance of their own.

    The route of theirs is still there, for the OpenAPI document and for other methods at its path.

    Attributes:
        predictions: takes them.
    """

    predictions: Entrance

    def openapi(self) -> dict[str, Any]:
        return document.complete(super().openapi())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_prediction(scope):
            scope["app"] = self
            await self.predictions(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings | None = None) -> App:
    """Make the application.

    Args:
        settings: read from the environment unless given.

    Raises:
        pydantic.ValidationError: a setting in the environment is wrong.
        training.errors.InputError: the device is not present.
    """
    settings = settings or Settings()
    device = settings.choose_device()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        _prepare_process()
        async with _running(settings, device) as service:
            app.state.service = service
            yield State(
                receive_seconds=settings.max_receive_seconds,
                stopping=service.stopping,
                refusals=Refusals(service.admission),
            )

    app = App(
        title="Refit",
        description="Classifies pictures with the models in a folder of artifacts.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere; `page` has one that does not
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # looked for at every request; there is our own
    )
    errors.install(app)
    keys = [key.get_secret_value() for key in settings.api_keys]
    _add_layers(app, settings, keys)
    # The middleware asks for the key, on every address; this says so in the OpenAPI document.
    bearer, header = HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False)
    secured = [Security(bearer), Security(header)] if keys else []
    app.include_router(predict.router, dependencies=secured)
    app.include_router(models.router, dependencies=secured)
    app.include_router(finetune.router, dependencies=secured)
    app.include_router(feedback.router, dependencies=secured)
    app.include_router(canary.router, dependencies=secured)
    app.include_router(metrics.router, dependencies=secured)
    app.include_router(health.router)
    app.include_router(page.router)
    app.mount("/web", page.files)
    return app


def _add_layers(app: App, settings: Settings, keys: Sequence[str]) -> None:
    """Put around the routes what requests pass before them."""
    uploads = Limit(settings.max_upload_bytes, "APP_MAX_UPLOAD_MB")
    datasets = {"/finetune": Limit(settings.max_dataset_bytes, "APP_MAX_DATASET_MB")}
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, limit=uploads, exceptions=datasets)
    checks = [check_head, Origins(None if keys else settings.hosts).check, *([Keys(keys).check] if keys else [])]
    app.add_middleware(Guard, checks=checks)
    app.predictions = Entrance(predict.predict, uploads, checks)


def _prepare_process() -> None:
    _end_with_supervisor()
    machine.reuse_freed_memory()
    # The threads that compute and decode get Python's lock from the event loop after this long, not after 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # The 130,000 objects of imported libraries stay. To look for garbage among them would hold all requests up, for
    # 25 ms each time, and for more with torch. Nor is there much to find after every third request.
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS)


@asynccontextmanager
async def _running(settings: Settings, device: Literal["cpu", "cuda"]) -> AsyncIterator[Service]:
    """The service with all that works beside the requests; everything is ended with the block."""
    shares = machine.divide(settings.workers)
    apart = shares_two_processors()
    cache = settings.data_dir / "engines"
    engines = Engines(settings.engine, device, shares.engine, settings.max_batch, cache, apart)
    service = Service(
        settings,
        Registry(
            settings.models_dir, settings.default_model, engines, _max_memory(settings), data_dir=settings.data_dir
        ),
        Decoder(settings.max_pixels, shares.decode, settings.max_decode_pixels),
        Admission(settings.max_inflight, settings.max_inflight_bytes, settings.max_wait_seconds),
        JobQueue(settings),
        asyncio.Event(),
        _recorder(settings),
    )
    # Beside the server, not before it: it can say that it lives and is not ready while models load.
    loading = asyncio.create_task(service.registry.load_all())
    if settings.workers > 1:
        # The workers share one port, and nobody can choose which of them answers: only those that are ready listen.
        await loading
    following = asyncio.create_task(_follow(service.registry, loading, Background(watched=apart)))
    try:
        yield service
    finally:
        engines.close()  # first: loading waits for what is being tried
        for task in (loading, following):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await _close(service)


async def _close(service: Service) -> None:
    await service.registry.close()
    service.decoder.close()
    service.jobs.close()
    if service.recorder:
        service.recorder.close()
    ACCESS.flush()  # a worker process is ended by the signal that stops it


def _end_with_supervisor() -> None:
    """Have this process end when the one that started it, as one of several, has ended, however it did."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _max_memory(settings: Settings) -> float:
    """Bytes of this process's memory above which models are unloaded."""
    if settings.max_memory_mb is None:
        return machine.memory_bytes() / 2 / settings.workers
    return settings.max_memory_mb * 1_000_000


def _recorder(settings: Settings) -> Recorder | None:
    if not settings.keep_feedback:
        return None
    store = Store(settings.data_dir / "feedback", settings.feedback_max_bytes, settings.feedback_max_days)
    return Recorder(store)


async def _follow(registry: Registry, loading: asyncio.Task[None], background: Background) -> None:
    """Follow what other processes promote, well within the two seconds that are promised, and whether they train."""
    await asyncio.wait((loading,))
    while True:
        await asyncio.sleep(_FOLLOW_SECONDS)
        try:
            background.follow()
            registry.keep_apart(background.busy)
            await registry.refresh()
        except Exception:
            log.exception("What other processes do cannot be followed now; trying again")
