"""The models and their versions, and which version serves."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from app import promotion
from app.api.body import json_body, read_json
from app.errors import documented
from app.registry import ModelInfo
from app.service import ActorDep, ServiceDep
from training.artifact import Manifest

router = APIRouter(prefix="/models", tags=["models"])


class Models(BaseModel):
    """All models in the folder."""

    models: list[ModelInfo]


class Promotion(BaseModel):
    """What to put into production."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[PositiveInt, Field(strict=True, description="The version that is to serve.")]


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


@router.post(
    "/{name}/promote",
    summary="Put a version into production",
    responses=documented(404, 409, 413, 415, 422, 500, 503),
    openapi_extra=json_body(Promotion),
)
async def promote(request: Request, service: ServiceDep, name: str, actor: ActorDep) -> ModelInfo:
    """Verify a version, load it and warm it up beside the one that serves, then let it take over between two batches.

    No request fails or waits for it. Other server processes follow within two seconds. A version that cannot be used
    is 409, and the one that served goes on. The audit log in APP_DATA_DIR says who did it.
    """
    wanted = await read_json(request, Promotion)
    settings = service.settings
    await service.registry.prepare(name, wanted.version)
    await asyncio.to_thread(promotion.promote, settings.models_dir, settings.data_dir, name, wanted.version, actor)
    await service.registry.follow(name)
    return await service.registry.describe(name)


@router.post("/{name}/rollback", summary="Go back to the version before", responses=documented(404, 409, 500, 503))
async def rollback(service: ServiceDep, name: str, actor: ActorDep) -> ModelInfo:
    """Put the version into production that was there before the present one, the way a promotion does."""
    settings = service.settings
    version = await asyncio.to_thread(promotion.earlier, settings.models_dir, name)
    await service.registry.prepare(name, version)
    await asyncio.to_thread(promotion.rollback, settings.models_dir, settings.data_dir, name, actor)
    await service.registry.follow(name)
    return await service.registry.describe(name)
