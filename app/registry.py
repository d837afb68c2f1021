"""The registry: which models and versions there are, and which version answers for a model."""

import asyncio
import logging
import math
from pathlib import Path
from weakref import WeakValueDictionary

from pydantic import BaseModel, Field

from app import catalog
from app.canary import Canary
from app.errors import ModelUnavailableError, NotReadyError, UnknownModelError, UnusableVersionError
from app.loader import Loader, Served
from app.serving.engines import Engines
from app.trial import Trial, Trials
from training import artifact
from training.artifact import Aliases, Manifest
from training.errors import ArtifactError

log = logging.getLogger(__name__)

PREFERRED = "cifar10"

Stamp = tuple[int, int] | None  # of a file: another one whenever the file is replaced


class ModelInfo(BaseModel):
    """A model as the service sees it."""

    name: str
    default: bool = Field(description="Whether it answers requests that name no model.")
    versions: tuple[int, ...] = Field(description="The versions on disk.")
    aliases: Aliases = Field(description="The production version on disk, and the ones before it.")
    serving: int | None = Field(description="The version that answers requests that name none.")
    trial: Canary | None = Field(description="The version on trial beside it, if there is one.")
    loaded: tuple[int, ...] = Field(description="The versions in the memory of the process that answered.")
    error: str | None = Field(description="Why the production version does not answer, if it does not.")


class Registry:
    """Knows which version answers, follows what is promoted on disk, and hands out versions. Belongs to one event loop.

    `load_all` loads the production version of every model, and `refresh` those that came or changed since; other
    versions are loaded when they are first asked for, and let go of when their folders are replaced. No version ever
    stands in for another that was asked for: who asks for a broken one gets the reason. A broken one that is promoted
    does not take over from the one before.

    Args:
        models: the folder, `<name>/<version>/` below it.
        default: name of the model that answers when none is named; None is cifar10 if there, else the first by name.
        engines: opens the versions.
        max_memory: bytes of this process's memory above which the least recently used versions are unloaded.
        retry_seconds: how long a version that could not be loaded is refused without another look at its files.
        data_dir: folder of the audit log, and of what trials count.

    Attributes:
        trials: the canaries and shadows that run in this process.
    """

    def __init__(
        self,
        models: Path,
        default: str | None,
        engines: Engines,
        max_memory: float = math.inf,
        retry_seconds: float = 10,
        data_dir: Path = Path("data"),
    ) -> None:
        self._models = models
        self._default = default
        self._retry_seconds = retry_seconds
        self._loader = Loader(models, engines, max_memory, retry_seconds)
        self.trials = Trials(models, data_dir, self._loader)
        self._names: list[str] = []
        self._production: dict[str, int] = {}
        self._defects: dict[str, str] = {}  # why a model's production version does not answer
        self._stamps: dict[str, tuple[Stamp, ...]] = {}
        self._following: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # as long as they are held
        self._started = False
        self._defect: str | None = None

    async def load_all(self) -> None:
        """Load and warm up the production version of every model. Those that cannot be are logged and refused later."""
        try:
            await self.refresh()
        except Exception:
            log.exception("The models could not be loaded; trying again")
            self._defect = "The models could not be loaded. The service's log says why, and it tries again."
            return
        if self._default and self._default not in self._names:
            log.error("The default model %s is not in %s. Mend APP_DEFAULT_MODEL.", self._default, self._models)
        shown = ", ".join(f"{name} version {number}" for name, number in self._production.items())
        log.info("Serving %s from %s", shown or "no model", self._models)

    async def refresh(self) -> None:
        """Follow what was promoted or put on trial since the last time, and try again what could not be loaded then."""
        await self.trials.watch()
        failures: list[Exception] = []
        for name in await asyncio.to_thread(self._changed):
            try:
                await self.follow(name)
            except ModelUnavailableError:
                pass  # logged where it was found, and given to everybody who asks for the model
            except UnknownModelError as error:
                log.warning("%s", error)
            except Exception as error:  # one that nobody foresaw, of which the other models know nothing
                self._stamps.pop(name, None)  # looked at again the next time
                failures.append(error)
        self._started |= bool(self._production) or not failures
        if failures:
            raise failures[0]

    async def follow(self, name: str) -> None:
        """Let those versions answer that the files on disk say: they are loaded and warmed up first, then take over.

        Raises:
            UnknownModelError: there is no such model, or no version of it is in production.
            ModelUnavailableError: the version in production cannot be used; the one that answered goes on.
        """
        async with self._following.setdefault(name, asyncio.Lock()):
            before = self._production.get(name)
            try:
                self._production[name] = version = await self._load_production(name)
                await self._loader.unload_replaced(name)
            except UnknownModelError:
                if self._production.pop(name, None):
                    self._loader.unload(name, keep=frozenset())
                raise
            finally:
                await self.trials.follow(name, self._production.get(name))
        if before is not None and before != version:
            log.info("%s version %d takes over from version %d", name, version, before)
            self._loader.unload(name, keep=frozenset({before, version}))

    async def prepare(self, name: str, version: int) -> None:
        """Verify, load and warm up a version that is to answer soon.

        Raises:
            UnknownModelError: there is no such model or version.
            UnusableVersionError: it cannot be used.
            NotReadyError: models are still being loaded.
        """
        self._check_started()
        self._loader.forget_failure(name, version)
        try:
            await self._loader.load(name, version)
        except ModelUnavailableError as error:
            raise UnusableVersionError(str(error)) from error

    def keep_apart(self, apart: bool) -> None:
        """Say whether all batches are computed with half of the processors from now on, see `Turns`."""
        turns = self._loader.turns
        if apart != turns.apart:
            work, halves = ("runs", "half") if apart else ("has ended", "all")
            log.info("Work of low priority %s on this machine: a batch takes %s of the processors", work, halves)
        turns.apart = apart

    def check_ready(self) -> None:
        """Return if the service can answer.

        Raises:
            NotReadyError: models are still being loaded, none could be, or the default that was set does not answer.
        """
        self._check_started()
        reason = None
        if not self._production:
            reason = " ".join(self._defects.values()) or catalog.no_models(self._models)
        elif self._default and self._default not in self._production:
            reason = self._default_defect(self._default)
        if reason:
            raise NotReadyError(reason, math.ceil(self._retry_seconds))

    async def get(self, name: str | None, version: int | None) -> Served:
        """Give a version, loaded and warmed up; this takes no time if it is loaded already.

        Enter it (`with served: ...`) before anything else is awaited: it could be unloaded meanwhile.

        Args:
            name: a model, or None for the default one.
            version: a version, or None for the one in production.

        Raises:
            UnknownModelError: there is no such model or version; the message names those there are.
            ModelUnavailableError: it is there and cannot be used.
            NotReadyError: models are still being loaded.
        """
        chosen = name or await self._default_name()
        trial = self.trials.get(chosen)
        if trial and version is None:
            return trial.choose()
        number = self._production.get(chosen) if version is None else version
        served = self._loader.find(chosen, number)
        if served:
            return served
        self._check_started()
        if number is None:
            await self.follow(chosen)
            number = self._production[chosen]
        return await self._loader.load(chosen, number)

    def trial(self, served: Served) -> Trial | None:
        """The trial that a version takes part in."""
        trial = self.trials.get(served.name)
        return trial if trial and served in {trial.production, trial.candidate} else None

    async def names(self) -> list[str]:
        """Names of the models on disk, sorted."""
        return await asyncio.to_thread(artifact.names, self._models)

    async def describe(self, name: str) -> ModelInfo:
        """Tell what is known of a model.

        Raises:
            UnknownModelError: there is no such model.
        """
        await asyncio.to_thread(catalog.check_model, self._models, name)
        error = self._defects.get(name)
        trial = self.trials.get(name)
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
            trial=trial.record if trial else None,
            loaded=self._loader.versions(name),
            error=error,
        )

    async def manifest(self, name: str, version: int) -> Manifest:
        """Read the manifest of a version.

        Raises:
            UnknownModelError: there is no such model or version.
            ModelUnavailableError: the manifest cannot be read.
        """
        await asyncio.to_thread(catalog.check_version, self._models, name, version)
        try:
            return await asyncio.to_thread(artifact.read_manifest, artifact.folder(self._models, name, version))
        except ArtifactError as error:
            raise ModelUnavailableError(str(error), math.ceil(self._retry_seconds)) from error

    async def close(self) -> None:
        """Load nothing more, answer what waits, and let go of the engines."""
        await self.trials.close()
        await self._loader.close()

    async def _default_name(self) -> str:
        if self._default:
            return self._default
        if not self._names:
            self._names = await self.names()
        if not self._names:
            raise UnknownModelError(catalog.no_models(self._models))
        return PREFERRED if PREFERRED in self._names else self._names[0]

    def _default_defect(self, name: str) -> str:
        """Why the default model that was set does not answer."""
        if name not in self._names:
            return f"{catalog.unknown_model(name, self._names)} Mend APP_DEFAULT_MODEL."
        return self._defects.get(name) or (
            f"No version of the default model {name!r} is in production. Promote one, or mend APP_DEFAULT_MODEL."
        )

    def _check_started(self) -> None:
        if not self._started:
            reason = self._defect or "The models are being loaded. Send the request again in a second."
            raise NotReadyError(reason, 1)

    async def _load_production(self, name: str) -> int:
        """The version in production on disk, loaded if it does not answer already."""
        try:
            version = await asyncio.to_thread(catalog.production, self._models, name)
            if version != self._production.get(name) or await self._loader.replaced(name, version):
                await self._loader.load(name, version)
        except UnknownModelError:
            self._defects.pop(name, None)
            raise
        except (ArtifactError, ModelUnavailableError) as error:
            if self._defects.get(name) != str(error):
                log.error("The version of %s in production cannot be used: %s", name, error)  # noqa: TRY400
            self._defects[name] = str(error)
            if isinstance(error, ModelUnavailableError):
                raise
            raise ModelUnavailableError(str(error), math.ceil(self._retry_seconds)) from error
        self._defects.pop(name, None)
        return version

    def _changed(self) -> list[str]:
        """Names of the models that came, went, or could not be loaded, or whose files were replaced.

        Where all are gone at once, it is the disk that is gone, and what was loaded goes on answering.
        """
        found = artifact.names(self._models)
        if not found:
            return []
        self._names = found
        # Stamped before they are read: what is replaced meanwhile is noticed the next time.
        stamps = {name: tuple(map(_stamp, self._files(name))) for name in self._names}
        known, self._stamps = self._stamps, stamps
        gone = [name for name in known if name not in stamps]
        return gone + [name for name in stamps if name in self._defects or known.get(name) != stamps[name]]

    def _files(self, name: str) -> list[Path]:
        """The files of a model that say what answers, those of the versions in memory among them."""
        folder = self._models / name
        loaded = (artifact.folder(self._models, name, version) for version in self._loader.versions(name))
        return [folder / artifact.ALIASES, folder / artifact.CANARY, *(path / artifact.MANIFEST for path in loaded)]


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
