"""The loader: nothing in use is unloaded, what was not used for longest goes first, and its memory comes back."""

import asyncio
import math
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from app.errors import ModelUnavailableError
from app.loader import Loader
from app.serving.engines import Engines
from tests.app import artifacts
from tests.app.pictures import direct, png
from tests.app.process import serve
from training import picture

PICTURE = png(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    for seed in (1, 2, 3):
        artifacts.write(folder, "pets", seed, promote=False)
    return folder


def drive(models: Path, max_memory: float, scenario: Callable[[Loader], Awaitable[None]]) -> None:
    """Run a scenario with a loader that is closed at its end."""

    async def run() -> None:
        loader = Loader(models, Engines("torchscript-f32", "cpu", 1, 4), max_memory, 3600)
        try:
            await scenario(loader)
        finally:
            await loader.close()

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (nothing tells when a version is gone)
            await asyncio.sleep(0.01)


def test_everything_stays_while_there_is_room(models: Path) -> None:
    async def scenario(loader: Loader) -> None:
        for version in (1, 2, 3):
            await loader.load("pets", version)
        assert loader.versions("pets") == (1, 2, 3)

    drive(models, math.inf, scenario)


def test_newest_stays_where_there_is_no_room_at_all(models: Path) -> None:
    async def scenario(loader: Loader) -> None:
        for version in (1, 2, 3):
            await loader.load("pets", version)
        await until(lambda: loader.versions("pets") == (3,))
        assert (await loader.load("pets", 1)).version == 1

    drive(models, 1, scenario)


def test_version_in_use_is_not_unloaded(models: Path) -> None:
    async def scenario(loader: Loader) -> None:
        with await loader.load("pets", 1) as served:
            for version in (2, 3):
                await loader.load("pets", version)
            await until(lambda: loader.versions("pets") == (1, 3))
            row = await served.batcher.predict(picture.decode(PICTURE, artifacts.SIZE))
            assert row == pytest.approx(direct(models / "pets" / "1", PICTURE)[0], abs=1e-4)

    drive(models, 1, scenario)


def test_unloading_waits_for_the_requests_in_work(models: Path) -> None:
    async def scenario(loader: Loader) -> None:
        pixels = picture.decode(PICTURE, artifacts.SIZE)
        with await loader.load("pets", 1) as old:
            loader.unload("pets", keep=frozenset({2}))
            assert loader.versions("pets") == ()
            new = await loader.load("pets", 1)
            assert new is not old
            assert (await old.batcher.predict(pixels)).shape == (await new.batcher.predict(pixels)).shape

    drive(models, math.inf, scenario)


def test_copy_under_another_name_is_refused_and_unloads_nothing(models: Path, tmp_path: Path) -> None:
    for name in ("pets", "copy"):
        shutil.copytree(models / "pets", tmp_path / name)

    async def scenario(loader: Loader) -> None:
        await loader.load("pets", 1)
        with pytest.raises(ModelUnavailableError, match=r"copy/1 holds the manifest of pets version 1; .* remove it"):
            await loader.load("copy", 1)
        assert (loader.versions("pets"), loader.versions("copy")) == ((1,), ())

    drive(tmp_path, 1, scenario)


def test_version_that_was_replaced_is_loaded_anew(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "pets" / "1", tmp_path / "pets" / "1")
    pixels = picture.decode(PICTURE, artifacts.SIZE)

    async def scenario(loader: Loader) -> None:
        with await loader.load("pets", 1) as old:
            shutil.rmtree(tmp_path / "pets" / "1")
            artifacts.write(tmp_path, "pets", seed=9, classes=("bird", "cat"), promote=False)
            new = await loader.load("pets", 1)
            assert await loader.load("pets", 1) is new
            assert new.manifest.classes == ("bird", "cat")
            assert [len(await served.batcher.predict(pixels)) for served in (old, new)] == [10, 2]

    drive(tmp_path, math.inf, scenario)


def test_memory_comes_back(tmp_path: Path) -> None:
    """Versions of 45 MB are asked for in turn; only the newest one's memory is still taken at the end."""
    for seed in (1, 2, 3, 4):
        artifacts.write(tmp_path, "large", seed, promote=seed == 1, architecture="resnet18", width=64)

    with (
        serve(tmp_path, max_memory_mb=1, max_batch=4) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):

        def ask(version: int) -> None:
            answer = client.post("/predict", params={"version": version}, files={"file": PICTURE}, timeout=60)
            assert answer.json()["version"] == version

        def resident() -> int:
            return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096

        ask(1)
        one = resident()
        for version in (2, 3, 4, 1, 2, 3, 4):
            ask(version)
        while sum("Unloaded large" in line for line in server.log) < 7:
            assert client.get("/healthz").status_code == 200
        assert resident() < one + 160e6  # seven more would take 315 MB, and torch itself holds 80 more or less
