"""Whether the service lives, whether it can answer, and how it does."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from app import telemetry
from app.errors import documented
from app.service import ServiceDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The answer of a service that is well."""

    status: str


@router.get("/healthz", summary="Is the service alive?")
async def healthz() -> Health:
    """Answer 200 as long as the process can answer at all."""
    return Health(status="alive")


@router.get("/readyz", summary="Can the service answer?", responses=documented(503))
async def readyz(service: ServiceDep) -> Health:
    """Answer 200 once the models are loaded and warmed up, and 503 before."""
    service.registry.check_ready()
    return Health(status="ready")


@router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
async def metrics() -> Response:
    """Requests by model, version and status; where their time went; batches; what is loaded. All processes together."""
    return Response(await asyncio.to_thread(telemetry.exposition), media_type=CONTENT_TYPE_LATEST)
