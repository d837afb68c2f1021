"""How the service does, in figures."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app import telemetry

router = APIRouter(tags=["health"])


@router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
async def metrics() -> Response:
    """Requests by model, version and status; where their time went; batches; what is loaded. All processes together."""
    return Response(await asyncio.to_thread(telemetry.exposition), media_type=CONTENT_TYPE_LATEST)
