"""What a running service consists of, and how a request gets at it."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.feedback.recorder import Recorder
from app.jobs.queue import JobQueue
from app.registry import Registry
from app.serving.admission import Admission
from app.serving.image import Decoder
from app.settings import Settings


@dataclass(frozen=True)
class Service:
    """The parts that live as long as the service does.

    Attributes:
        stopping: set as soon as the service is told to end.
        recorder: None if pictures are not kept.
    """

    settings: Settings
    registry: Registry
    decoder: Decoder
    admission: Admission
    jobs: JobQueue
    stopping: asyncio.Event
    recorder: Recorder | None


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]


async def _actor(request: Request) -> str:
    """Who sends a request, as the audit log names them: the address, and which of the API keys, by its place."""
    address = request.client.host if request.client else "unknown address"
    key = request.scope.get("api_key")
    return f"{address} with API key {key}" if key else address


ActorDep = Annotated[str, Depends(_actor)]
