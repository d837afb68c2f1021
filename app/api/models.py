"""The models and their versions."""

from fastapi import APIRouter
from pydantic import BaseModel

from app.errors import documented
from app.registry import ModelInfo
from app.service import ServiceDep
from training.artifact import Manifest

router = APIRouter(prefix="/models", tags=["models"])


class Models(BaseModel):
    """All models in the folder."""

    models: list[ModelInfo]


@router.get("", summary="All models")
async def list_models(service: ServiceDep) -> Models:
    """List the models with their versions, the one in production, and what is wrong with those that do not answer."""
    registry = service.registry
    return Models(models=[await registry.describe(name) for name in await registry.names()])


@router.get("/{name}", summary="One model", responses=documented(404))
async def get_model(service: ServiceDep, name: str) -> ModelInfo:
    """Show one model."""
    return await service.registry.describe(name)


@router.get("/{name}/versions/{version}", summary="One version", responses=documented(404, 422, 503))
async def get_version(service: ServiceDep, name: str, version: int) -> Manifest:
    """Show the manifest of one version: classes, preprocessing, metrics, and how it was made."""
    return await service.registry.manifest(name, version)
