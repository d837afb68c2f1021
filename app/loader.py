"""The loader: the versions that are in memory, brought there when they are needed and let go of when room is."""

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from app import catalog, telemetry
from app.errors import ClosingError, ModelUnavailableError
from app.serving.batcher import Batcher
from app.serving.engines import Engines, Opened
from app.serving.turns import Turns
from training import artifact, machine
from training.artifact import Manifest
from training.errors import ArtifactError

log = logging.getLogger(__name__)

Key = tuple[str, int]  # name and version


class Served:
    """A version that is loaded and answers. While it is entered (`with served: ...`) it is not unloaded.

    Args:
        manifest: of the version.
        engine: name of the engine that runs it.
        batcher: gives the engine its pictures.

    Attributes:
        users: how often it is entered now.
        used: when it was entered last, of time.monotonic().
    """

    def __init__(self, manifest: Manifest, engine: str, batcher: Batcher) -> None:
        self.name = manifest.name
        self.version = manifest.version
        self.manifest = manifest
        self.engine = engine
        self.batcher = batcher
        self.used = time.monotonic()
        self.users = 0
        self._unused: asyncio.Future[None] | None = None

    def __enter__(self) -> "Served":
        self.users += 1
        self.used = time.monotonic()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.users -= 1
        if not self.users and self._unused and not self._unused.done():
            self._unused.set_result(None)

    async def close(self) -> None:
        """Return when nobody uses it any more. Nobody may enter it from now on."""
        if self.users:
            self._unused = asyncio.get_running_loop().create_future()
            await self._unused
        await self.batcher.close()


@dataclass(frozen=True)
class _Failure:
    reason: str
    until: float  # of time.monotonic()


class Loader:
    """Loads versions from a folder of models, and unloads the least recently used when memory runs short.

    Belongs to one event loop. A version is verified, loaded and warmed up beside the others, which answer meanwhile.

    Args:
        models: the folder, `<name>/<version>/` below it.
        engines: opens the versions.
        max_memory: bytes of this process's memory above which versions are unloaded.
        retry_seconds: how long a version that could not be loaded is refused without another look at its files.

    Attributes:
        turns: of all their batches.
    """

    def __init__(self, models: Path, engines: Engines, max_memory: float, retry_seconds: float) -> None:
        self._models = models
        self._engines = engines
        self._max_memory = max_memory
        self._retry_seconds = retry_seconds
        self._served: dict[Key, Served] = {}
        self._failures: dict[Key, _Failure] = {}
        self._lock = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()
        self._closed = False
        self.turns = Turns()

    def find(self, name: str, version: int | None) -> Served | None:
        """The version if it is loaded."""
        return None if version is None else self._served.get((name, version))

    def versions(self, name: str) -> tuple[int, ...]:
        """The loaded versions of a model, ascending."""
        # A copy, as the registry asks from another thread too.
        return tuple(sorted(version for model, version in list(self._served) if model == name))

    def busy(self) -> bool:
        """Whether any version computes pictures, or has some that wait."""
        return any(served.batcher.busy for served in self._served.values())

    def forget_failure(self, name: str, version: int) -> None:
        """Let the next `load` look at the files again, even if they were found damaged a moment ago."""
        self._failures.pop((name, version), None)

    async def load(self, name: str, version: int) -> Served:
        """Give a version, verified, loaded and warmed up: the one on disk, if another was loaded under its number.

        Raises:
            UnknownModelError: there is no such model or version; the message names those there are.
            ModelUnavailableError: it cannot be used.
            ClosingError: the service is shutting down.
        """
        self._refuse_known_failure(name, version)
        try:
            await asyncio.to_thread(catalog.check_version, self._models, name, version)
            async with self._lock:
                self._refuse_known_failure(name, version)
                current = None if await self.replaced(name, version) else self.find(name, version)
                served = current or await self._load(name, version)
        except ArtifactError as error:
            self._failures[name, version] = _Failure(str(error), time.monotonic() + self._retry_seconds)
            log.warning("%s version %d cannot be loaded: %s", name, version, error)
            raise ModelUnavailableError(str(error), math.ceil(self._retry_seconds)) from error
        self._failures.pop((name, version), None)
        return served

    async def replaced(self, name: str, version: int) -> bool:
        """Whether a version is loaded and its folder holds another one by now, or none that can be read."""
        served = self.find(name, version)
        if served is None:
            return False
        try:
            folder = artifact.folder(self._models, name, version)
            return await asyncio.to_thread(artifact.read_manifest, folder) != served.manifest
        except ArtifactError:
            return True  # `load` says why

    def unload(self, name: str, keep: frozenset[int]) -> None:
        """Begin to unload all versions of a model but some; each goes when the requests that it has are answered."""
        for version in self.versions(name):
            if version not in keep:
                self._begin_unloading(self._served.pop((name, version)))

    async def unload_replaced(self, name: str) -> None:
        """Begin to unload the versions of a model that were replaced; who asks for one then gets what is on disk."""
        replaced = [version for version in self.versions(name) if await self.replaced(name, version)]
        self.unload(name, keep=frozenset(self.versions(name)) - set(replaced))

    async def close(self) -> None:
        """Load nothing more, answer what waits, and let go of the engines."""
        self._closed = True
        async with self._lock:
            await asyncio.gather(*(served.batcher.close() for served in self._served.values()))
            await asyncio.gather(*self._unloading)
        self.turns.shutdown()

    def _refuse_known_failure(self, name: str, version: int) -> None:
        failure = self._failures.get((name, version))
        if failure and (left := failure.until - time.monotonic()) > 0:
            raise ModelUnavailableError(failure.reason, math.ceil(left))

    async def _load(self, name: str, version: int) -> Served:
        if self._closed:
            raise ClosingError("The service is shutting down. Send the request again.", 1)
        manifest, opened = await asyncio.to_thread(self._read, name, version)
        observe = telemetry.batch_observer(name)
        batcher = Batcher(opened.engine, opened.curve, self.turns, observe, opened.halves, opened.long)
        before = self._served.get((name, version))
        served = self._served[name, version] = Served(manifest, opened.kind, batcher)
        if before:  # only now, as it goes on where the one that replaced it cannot be used
            self._begin_unloading(before)
        telemetry.note_loaded(name, version, opened.kind, loaded=True)
        log.info("Loaded %s version %d on %s", name, version, opened.kind)
        self._make_room()
        return served

    def _read(self, name: str, version: int) -> tuple[Manifest, Opened]:
        path = artifact.folder(self._models, name, version)
        manifest = artifact.verify(path)
        opened = self._engines.open(path, manifest)
        machine.return_freed_memory()  # up to 170 MB that compiling a ResNet-20 took
        return manifest, opened

    def _make_room(self) -> None:
        """Begin to unload the version that was not used for longest, if this process takes too much memory."""
        others = sorted(self._served.values(), key=lambda served: served.used)[:-1]
        oldest = next((served for served in others if not served.users), None)
        if oldest and not self._closed and machine.resident_bytes() > self._max_memory:
            log.info("This process takes more than %.0f MB", self._max_memory / 1e6)
            # How much that gives back shows only when it is gone.
            task = self._begin_unloading(self._served.pop((oldest.name, oldest.version)))
            task.add_done_callback(lambda _: self._make_room())

    def _begin_unloading(self, served: Served) -> asyncio.Task[None]:
        task = asyncio.create_task(self._unload(served))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)
        return task

    async def _unload(self, served: Served) -> None:
        await served.close()
        name, version, engine = served.name, served.version, served.engine
        del served  # the last reference to its engine
        await asyncio.to_thread(machine.return_freed_memory)
        now = self.find(name, version)
        telemetry.note_loaded(name, version, engine, loaded=now is not None and now.engine == engine)
        log.info("Unloaded %s version %d", name, version)
