"""Whether the service lives, and whether it can answer."""

from fastapi import APIRouter
from pydantic import BaseModel

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
    """Answer 200 once the models are loaded and warmed up; 503 before, and while a default that was set is missing."""
    service.registry.check_ready()
    return Health(status="ready")
