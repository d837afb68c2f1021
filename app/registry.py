"""The registry: which models and versions there are, and which of them are loaded and answer."""

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, Field

from app.errors import ClosingError, ModelUnavailableError, NotReadyError, UnknownModelError
from app.serving.batcher import Batcher
from app.serving.engine import Engine, TorchScriptEngine
from training import artifact
from training.artifact import Aliases, Manifest
from training.errors import ArtifactError

log = logging.getLogger(__name__)

PREFERRED = "cifar10"


@dataclass(frozen=True)
class Served:
    """A version that is loaded and answers."""

    name: str
    version: int
    manifest: Manifest
    batcher: Batcher


class ModelInfo(BaseModel):
    """A model as the service sees it."""

    name: str
    default: bool = Field(description="Whether it answers requests that name no model.")
    versions: tuple[int, ...] = Field(description="The versions on disk.")
    aliases: Aliases = Field(description="The production version on disk, and the ones before it.")
    serving: int | None = Field(description="The version that answers requests that name none.")
    loaded: tuple[int, ...] = Field(description="The versions in memory.")
    error: str | None = Field(description="Why the production version does not answer, if it does not.")


@dataclass(frozen=True)
class _Failure:
    reason: str
    until: float  # of time.monotonic()


class Registry:
    """Loads versions from a folder of models and hands them out. Belongs to one event loop.

    `load_all` loads the production version of every model; other versions, and models that came later, are loaded when
    they are first asked for. No version ever stands in for another: who asks for a broken one gets the reason.

    Args:
        models: the folder, `<name>/<version>/` below it.
        default: name of the model that answers when none is named; None is cifar10 if there, else the first by name.
        max_batch: most pictures that are computed at once.
        device: where the models run.
        retry_seconds: how long a version that could not be loaded is refused without another look at its files.
    """

    def __init__(
        self,
        models: Path,
        default: str | None,
        max_batch: int,
        device: torch.device,
        retry_seconds: float = 10,
    ) -> None:
        self._models = models
        self._default = default
        self._max_batch = max_batch
        self._device = device
        self._retry_seconds = retry_seconds
        self._names: list[str] = []
        self._production: dict[str, int] = {}
        self._served: dict[tuple[str, int], Served] = {}
        self._failures: dict[tuple[str, int | None], _Failure] = {}
        self._lock = asyncio.Lock()
        self._started = False
        self._defect: str | None = None
        self._closed = False
        # One thread for all models: two batches at once would only take the processors from each other.
        self._executor = ThreadPoolExecutor(1, "engine")

    async def load_all(self) -> None:
        """Load and warm up the production version of every model. Those that cannot be are logged and refused later."""
        try:
            self._names = await self.names()
            for name in self._names:
                await self._try_production(name)
        except Exception:
            log.exception("The models could not be loaded")
            self._defect = "The models could not be loaded. The service's log says why; mend it and restart."
            return
        self._started = True
        if self._default and self._default not in self._names:
            log.error("The default model %s is not in %s. Mend APP_DEFAULT_MODEL.", self._default, self._models)
        shown = ", ".join(f"{name} version {number}" for name, number in self._production.items())
        log.info("Serving %s from %s", shown or "no model", self._models)

    def check_ready(self) -> None:
        """Return if the service can answer.

        Raises:
            NotReadyError: models are still being loaded, or none could be.
        """
        self._check_started()
        if not self._production:
            failures = " ".join(failure.reason for failure in self._failures.values())
            raise NotReadyError(failures or self._no_models(), math.ceil(self._retry_seconds))

    async def get(self, name: str | None, version: int | None) -> Served:
        """Give a version, loaded and warmed up; this takes no time if it is loaded already.

        Args:
            name: a model, or None for the default one.
            version: a version, or None for the one in production.

        Raises:
            UnknownModelError: there is no such model or version; the message names those there are.
            ModelUnavailableError: it is there and cannot be used.
            NotReadyError: models are still being loaded.
        """
        chosen = name or await self._default_name()
        number = self._production.get(chosen) if version is None else version
        if number is not None and (chosen, number) in self._served:
            return self._served[chosen, number]
        self._check_started()
        return await self._open(chosen, version)

    async def names(self) -> list[str]:
        """Names of the models on disk, sorted."""
        return await asyncio.to_thread(artifact.names, self._models)

    async def describe(self, name: str) -> ModelInfo:
        """Tell what is known of a model.

        Raises:
            UnknownModelError: there is no such model.
        """
        await asyncio.to_thread(self._check_name, name)
        failure = self._failures.get((name, None))
        error = failure.reason if failure else None
        try:
            aliases = await asyncio.to_thread(artifact.read_aliases, self._models, name)
        except ArtifactError as broken:
            aliases, error = Aliases(), str(broken)
        return ModelInfo(
            name=name,
            default=name == await self._default_name(),
            versions=tuple(await asyncio.to_thread(artifact.versions, self._models, name)),
            aliases=aliases,
            serving=self._production.get(name),
            loaded=tuple(sorted(number for model, number in self._served if model == name)),
            error=error,
        )

    async def manifest(self, name: str, version: int) -> Manifest:
        """Read the manifest of a version.

        Raises:
            UnknownModelError: there is no such model or version.
            ModelUnavailableError: the manifest cannot be read.
        """
        await asyncio.to_thread(self._resolve, name, version)
        try:
            return await asyncio.to_thread(artifact.read_manifest, artifact.folder(self._models, name, version))
        except ArtifactError as error:
            raise ModelUnavailableError(str(error), math.ceil(self._retry_seconds)) from error

    async def close(self) -> None:
        """Load nothing more, answer what waits, and let go of the engines."""
        self._closed = True
        async with self._lock:
            await asyncio.gather(*(served.batcher.close() for served in self._served.values()))
        self._executor.shutdown()

    async def _default_name(self) -> str:
        if self._default:
            return self._default
        if not self._names:
            self._names = await self.names()
        if not self._names:
            raise UnknownModelError(self._no_models())
        return PREFERRED if PREFERRED in self._names else self._names[0]

    def _check_started(self) -> None:
        if not self._started:
            reason = self._defect or "The models are being loaded. Send the request again in a second."
            raise NotReadyError(reason, 1)

    async def _try_production(self, name: str) -> None:
        try:
            await self._open(name, None)
        except ModelUnavailableError:
            pass  # logged where it was found, and given to everybody who asks for the model
        except UnknownModelError as error:
            log.warning("%s", error)

    async def _open(self, name: str, version: int | None) -> Served:
        self._refuse_known_failure(name, version)
        try:
            number = await asyncio.to_thread(self._resolve, name, version)
            async with self._lock:
                self._refuse_known_failure(name, version)
                if (name, number) not in self._served:
                    self._served[name, number] = await self._load(name, number)
        except ArtifactError as error:
            self._failures[name, version] = _Failure(str(error), time.monotonic() + self._retry_seconds)
            log.error("Model %s cannot be loaded: %s", name, error)  # noqa: TRY400 (the reason is the message)
            raise ModelUnavailableError(str(error), math.ceil(self._retry_seconds)) from error
        self._failures.pop((name, version), None)
        if version is None:
            self._production[name] = number
        return self._served[name, number]

    def _refuse_known_failure(self, name: str, version: int | None) -> None:
        failure = self._failures.get((name, version))
        if failure and (left := failure.until - time.monotonic()) > 0:
            raise ModelUnavailableError(failure.reason, math.ceil(left))

    async def _load(self, name: str, version: int) -> Served:
        if self._closed:
            raise ClosingError("The service is shutting down. Send the request again.", 1)
        manifest, engine = await asyncio.to_thread(self._read, name, version)
        batcher = Batcher(engine, self._max_batch, self._executor)
        log.info("Loaded %s version %d on %s", name, version, self._device)
        return Served(name, version, manifest, batcher)

    def _read(self, name: str, version: int) -> tuple[Manifest, Engine]:
        path = artifact.folder(self._models, name, version)
        manifest = artifact.verify(path)
        engine = TorchScriptEngine(path / artifact.SCRIPT, manifest.input_size, len(manifest.classes), self._device)
        engine.load()
        engine.warm_up(self._max_batch)
        return manifest, engine

    def _resolve(self, name: str, version: int | None) -> int:
        """The number of an existing version; None asks for the one in production."""
        self._check_name(name)
        there = artifact.versions(self._models, name)
        known = ", ".join(map(str, there)) or "none"
        if version is None:
            production = artifact.read_aliases(self._models, name).production
            if production is None:
                raise UnknownModelError(
                    f"No version of the model {name!r} is in production. Ask for one with version=. Versions: {known}."
                )
            if production not in there:
                raise ArtifactError(
                    f"Version {production} of {name} is in production and is not there. Restore its folder, or put "
                    f"another version into production. Versions: {known}."
                )
            return production
        if version not in there:
            raise UnknownModelError(f"The model {name!r} has no version {version}. Versions: {known}.")
        return version

    def _check_name(self, name: str) -> None:
        there = artifact.names(self._models)
        if not there:
            raise UnknownModelError(self._no_models())
        if name not in there:
            raise UnknownModelError(f"There is no model {name!r}. Models: {', '.join(there)}.")

    def _no_models(self) -> str:
        return (
            f"There is no model in the folder {self._models}. Make one with `python -m training train`, "
            "or set APP_MODELS_DIR to a folder that has some, then restart the service."
        )
