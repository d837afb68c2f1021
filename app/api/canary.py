"""Trials of a version on real requests: as a canary that answers a share, or as a shadow that answers none."""

import asyncio
from typing import Annotated, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from app import canary
from app.api.body import json_body, read_json
from app.canary import Canary, Percent, Slowdown
from app.comparison import Tally
from app.errors import documented
from app.service import ActorDep, Service, ServiceDep

router = APIRouter(prefix="/models/{name}/canary", tags=["canary"])


class CanaryRequest(BaseModel):
    """What to try: give `percent`, or `"shadow": true`."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[PositiveInt, Field(strict=True, description="The version to try.")]
    percent: Percent | None = Field(None, description="Its share of the requests that name no version.")
    shadow: bool = Field(False, description="Give it copies of pictures while the service is idle, and count only.")
    max_slowdown: Slowdown = Field(
        2.0, description="The trial ends when its mean latency is clearly above so many times that of production."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.shadow == (self.percent is not None):
            raise ValueError("give either percent or shadow")
        return self


class VersionReport(BaseModel):
    """What one version did during a trial."""

    pictures: int
    failures: int = Field(description="Pictures among them that the model failed on.")
    mean_ms: float | None = Field(description="Mean time from decoded to answered, in milliseconds.")


class CanaryReport(BaseModel):
    """A trial, and what all server processes have counted in it; it remains when the trial has ended."""

    canary: Canary
    running: bool
    production: VersionReport
    candidate: VersionReport
    compared: int = Field(description="Pictures that both versions have answered.")
    agreement: float | None = Field(description="Share of them with the same label from both, 0 to 1.")
    dropped: int = Field(description="Pictures that only one version got, because the service was busy.")


@router.post(
    "",
    summary="Try a version beside the one in production",
    responses=documented(404, 409, 413, 415, 422, 500, 503),
    openapi_extra=json_body(CanaryRequest),
)
async def start(request: Request, service: ServiceDep, name: str, actor: ActorDep) -> CanaryReport:
    """Load a version and warm it up, then give it a share of the requests, or copies of them.

    The trial ends by itself when the version fails on clearly more pictures than production, or is clearly slower than
    allowed; when a version is promoted or rolled back; and with DELETE. Starting another one replaces it.
    """
    wanted = await read_json(request, CanaryRequest)
    settings = service.settings
    await service.registry.prepare(name, wanted.version)
    await asyncio.to_thread(
        canary.start,
        settings.models_dir,
        settings.data_dir,
        name,
        wanted.version,
        wanted.percent,
        wanted.max_slowdown,
        actor,
    )
    await service.registry.follow(name)
    return await _report(service, name)


@router.get("", summary="The newest trial", responses=documented(404, 409))
async def show(service: ServiceDep, name: str) -> CanaryReport:
    """Show the trial that runs, or the last one and why it ended."""
    return await _report(service, name)


@router.delete("", summary="End a trial", responses=documented(404, 409, 500, 503))
async def stop(service: ServiceDep, name: str, actor: ActorDep) -> CanaryReport:
    """Give all requests to the version in production again."""
    settings = service.settings
    await asyncio.to_thread(canary.stop, settings.models_dir, settings.data_dir, name, actor, "ended on request")
    await service.registry.follow(name)
    return await _report(service, name)


async def _report(service: Service, name: str) -> CanaryReport:
    record, counted = await service.registry.trials.report(name)
    return CanaryReport(
        canary=record,
        running=service.registry.trials.get(name) is not None,
        production=_version(counted.production),
        candidate=_version(counted.candidate),
        compared=counted.compared,
        agreement=counted.agreed / counted.compared if counted.compared else None,
        dropped=counted.dropped,
    )


def _version(tally: Tally) -> VersionReport:
    mean = 1000 * tally.mean if tally.answered else None
    return VersionReport(pictures=tally.pictures, failures=tally.failures, mean_ms=mean)
