"""Versions that change while requests come: none fails, none waits for ever, every answer is of one version."""

import asyncio
from pathlib import Path

import httpx
import pytest

from app import promotion
from tests.app import artifacts
from tests.app.load import LONG, PICTURES, Load, load
from tests.app.process import Server, serve
from tests.app.test_audit import lines
from training import artifact
from training.artifact import Aliases


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("takeover")
    for seed in (1, 2, 3):
        artifacts.write(folder, "pets", seed, promote=False)
    artifacts.change_a_byte(artifacts.write(folder, "pets", 4, promote=False) / artifact.SCRIPT)
    return folder


@pytest.fixture
def models(shared: Path) -> Path:
    """Four versions, the fourth damaged; the first is in production."""
    artifact.write_aliases(shared, "pets", Aliases(production=1, history=(1,)))
    return shared


async def change(client: httpx.AsyncClient, path: str, **body: object) -> httpx.Response:
    return await client.post(f"/models/pets/{path}", json=body) if body else await client.post(f"/models/pets/{path}")


async def version_now(client: httpx.AsyncClient) -> int:
    answer = await client.post("/predict", files={"file": PICTURES[0]})
    return int(answer.json()["version"])


def test_no_request_fails_while_versions_change(models: Path, tmp_path: Path) -> None:
    async def scenario(server: Server) -> Load:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=LONG) as client,
            load(server, models / "pets") as sent,
        ):
            for _ in range(3):
                for path, body, version in (
                    ("promote", {"version": 2}, 2),
                    ("promote", {"version": 3}, 3),
                    ("rollback", {}, 2),
                    ("rollback", {}, 1),
                ):
                    answer = await change(client, path, **body)
                    assert (answer.status_code, answer.json()["serving"]) == (200, version)
                    assert await version_now(client) == version
                refused = await change(client, "promote", version=4)
                assert refused.status_code == refused.json()["status"] == 409
                assert "model.ts was changed after it was written" in refused.json()["detail"]
                assert await version_now(client) == 1
        return sent

    with serve(models, data_dir=tmp_path) as server:
        sent = asyncio.run(scenario(server))
    assert sent.check() == {1, 2, 3}
    assert len(lines(tmp_path)) == 12
    assert {line["who"] for line in lines(tmp_path)} == {"127.0.0.1"}
    assert not any("Traceback" in line for line in server.log)


def test_every_process_follows(models: Path, tmp_path: Path) -> None:
    async def followed(server: Server, version: int) -> None:
        """Wait until many new connections, which go to any of the processes, are all answered by that version."""
        alike = 0
        one_request_each = httpx.Limits(max_keepalive_connections=0)
        async with (
            asyncio.timeout(LONG),
            httpx.AsyncClient(base_url=server.url, timeout=LONG, limits=one_request_each) as client,
        ):
            while alike < 30:
                alike = alike + 1 if await version_now(client) == version else 0

    async def scenario(server: Server) -> Load:
        async with load(server, models / "pets") as sent:
            async with httpx.AsyncClient(base_url=server.url, timeout=LONG) as client:
                assert (await change(client, "promote", version=2)).status_code == 200
            await followed(server, 2)
            # As a worker does that has trained a version: no server process is asked.
            await asyncio.to_thread(promotion.promote, models, tmp_path, "pets", 3, "worker")
            await followed(server, 3)
            await asyncio.to_thread(promotion.rollback, models, tmp_path, "pets", "worker")
            await followed(server, 2)
        return sent

    with serve(models, "--workers", "2", data_dir=tmp_path) as server:
        sent = asyncio.run(scenario(server))
        assert sum("takes over from version 1" in line for line in server.log) == 2
    assert sent.check() == {1, 2, 3}


def test_killed_server_starts_with_what_is_in_production(models: Path, tmp_path: Path) -> None:
    with serve(models, data_dir=tmp_path) as server, httpx.Client(base_url=server.url, timeout=LONG) as client:
        assert client.post("/models/pets/promote", json={"version": 3}).status_code == 200
        server.process.kill()
        server.process.wait()
    with serve(models, data_dir=tmp_path) as server, httpx.Client(base_url=server.url, timeout=LONG) as client:
        assert client.post("/predict", files={"file": PICTURES[0]}).json()["version"] == 3
        assert client.post("/models/pets/rollback").json()["serving"] == 1


def test_damaged_version_that_another_program_promotes(models: Path, tmp_path: Path) -> None:
    with serve(models, data_dir=tmp_path) as server, httpx.Client(base_url=server.url, timeout=LONG) as client:
        artifact.write_aliases(models, "pets", Aliases(production=4, history=(1, 4)))
        while not (error := client.get("/models/pets").json()["error"]):
            pass
        assert "model.ts was changed" in error
        assert client.post("/predict", files={"file": PICTURES[0]}).json()["version"] == 1
        assert client.get("/readyz").status_code == 200
        artifact.write_aliases(models, "pets", Aliases(production=2, history=(1, 2)))
        while client.get("/models/pets").json()["serving"] != 2:
            pass
        assert client.get("/models/pets").json()["error"] is None
