"""Trials on a running server: who answers what, what is reported, and how a bad candidate ends."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.app import artifacts
from tests.app.load import LONG, PICTURES, load
from tests.app.pictures import direct, png
from tests.app.process import Server, serve
from tests.app.test_audit import lines
from tests.encoding import encode
from training import artifact
from training.artifact import Aliases

BRIGHT = encode(Image.new("RGB", (32, 32), (250, 255, 240)))
OTHER, FRAGILE, SLOW, DAMAGED, SAME = 2, 3, 4, 5, 6


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    artifacts.write(folder, "pets", 1)
    artifacts.write(folder, "pets", OTHER, promote=False)
    artifacts.write(folder, "pets", FRAGILE, promote=False, wrap=artifacts.Fragile)
    artifacts.write(folder, "pets", SLOW, promote=False, architecture="resnet18", width=64)
    artifacts.change_a_byte(artifacts.write(folder, "pets", DAMAGED, promote=False) / artifact.SCRIPT)
    artifacts.write(folder, "pets", 1, promote=False)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(shared: Path, data: Path) -> Iterator[Server]:
    with serve(shared, data_dir=data) as running:
        yield running


@pytest.fixture
def client(server: Server, shared: Path) -> Iterator[httpx.Client]:
    """A client of the server, which has version 1 in production, and none that was ever on trial."""
    artifact.write_aliases(shared, "pets", Aliases(production=1, history=(1,)))
    (shared / "pets" / artifact.CANARY).unlink(missing_ok=True)
    with httpx.Client(base_url=server.url, timeout=LONG) as connected:
        while (now := connected.get("/models/pets").json())["serving"] != 1 or now["trial"]:
            pass
        yield connected
        connected.delete("/models/pets/canary")


def ask(client: httpx.Client, data: bytes, **params: int) -> dict[str, Any]:
    answer = client.post("/predict", files={"file": data}, params=params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def start(client: httpx.Client, version: int, **kind: object) -> dict[str, Any]:
    answer = client.post("/models/pets/canary", json={"version": version} | kind)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def report(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/models/pets/canary").json())


@pytest.mark.parametrize(("version", "agreement"), [(SAME, 1), (OTHER, 0)])
def test_share_and_agreement(client: httpx.Client, shared: Path, version: int, agreement: int) -> None:
    labels = [direct(shared / "pets" / str(number), *PICTURES).argmax(1) for number in (1, version)]
    chosen = (labels[0] == labels[1]) == bool(agreement)
    pictures = [picture for picture, taken in zip(PICTURES, chosen, strict=True) if taken]
    assert start(client, version, percent=25)["running"]
    versions = [ask(client, pictures[number % len(pictures)])["version"] for number in range(100)]
    assert versions == [1, 1, 1, version] * 25
    found = report(client)
    assert (found["production"]["pictures"], found["candidate"]["pictures"]) == (75, 25)
    assert found["production"]["mean_ms"] > 0
    assert found["compared"] > 0
    assert found["agreement"] == agreement


def test_named_version_takes_no_part(client: httpx.Client) -> None:
    start(client, OTHER, percent=90)
    for version in (1, OTHER, FRAGILE):
        assert {ask(client, png(1), version=version)["version"] for _ in range(10)} == {version}
    assert report(client)["production"]["pictures"] == report(client)["candidate"]["pictures"] == 0


def test_shadow_answers_nobody(client: httpx.Client) -> None:
    start(client, OTHER, shadow=True)
    while not (found := report(client))["compared"] >= 10:
        assert ask(client, png(1))["version"] == 1
    assert found["candidate"]["pictures"] == found["production"]["pictures"] == found["compared"]
    assert found["candidate"]["mean_ms"] > 0


def test_shadow_that_fails_costs_nobody_anything(client: httpx.Client, data: Path) -> None:
    start(client, FRAGILE, shadow=True)
    while not (found := report(client))["canary"]["ended"]:
        assert ask(client, BRIGHT)["version"] == 1
    assert found["candidate"]["failures"] >= 3
    assert "failed on" in found["canary"]["reason"]
    assert lines(data)[-1]["who"] == "refit"


def test_shadow_gives_way_under_load(client: httpx.Client, server: Server, shared: Path) -> None:
    async def scenario() -> dict[str, Any]:
        async with load(server, shared / "pets") as sent:
            await asyncio.to_thread(start, client, OTHER, shadow=True)
            while not (found := await asyncio.to_thread(report, client))["dropped"]:
                pass
        assert sent.check() == {1}
        return dict(found)

    assert asyncio.run(scenario())["running"]


def test_candidate_that_fails_is_ended_in_every_process(shared: Path, tmp_path: Path) -> None:
    models, data = Path(shutil.copytree(shared, tmp_path / "models")), tmp_path / "data"
    limits = httpx.Limits(max_keepalive_connections=0)  # every request goes to any of the processes
    with (
        serve(models, "--workers", "2", data_dir=data) as server,
        httpx.Client(base_url=server.url, timeout=LONG, limits=limits) as client,
    ):
        start(client, FRAGILE, percent=50)
        while sum("is on trial" in line for line in server.log) < 2:
            assert client.get("/healthz").status_code == 200
        statuses: list[int] = []
        while client.get("/models/pets").json()["trial"] or not statuses:
            statuses += [client.post("/predict", files={"file": BRIGHT}).status_code for _ in range(4)]
        assert set(statuses) == {200, 500}
        while sum("has ended" in line for line in server.log) < 2:
            assert client.get("/healthz").status_code == 200
        assert {ask(client, BRIGHT)["version"] for _ in range(30)} == {1}
        found = report(client)
        assert not found["running"]
        assert found["candidate"]["failures"] == statuses.count(500)
        assert "failed on" in found["canary"]["reason"]
    assert [line["what"] for line in lines(data)] == ["canary", "canary end"]


def test_candidate_that_is_slow_is_ended(client: httpx.Client) -> None:
    start(client, SLOW, percent=50)
    while report(client)["running"]:
        ask(client, png(1))
    found = report(client)
    assert found["candidate"]["mean_ms"] > 2 * found["production"]["mean_ms"]
    assert "ms a picture" in found["canary"]["reason"]
    assert {ask(client, png(1))["version"] for _ in range(20)} == {1}


def test_promotion_and_request_end_a_trial(client: httpx.Client) -> None:
    start(client, OTHER, percent=50)
    stopped = client.delete("/models/pets/canary").json()
    assert (stopped["running"], stopped["canary"]["reason"]) == (False, "ended on request")
    assert {ask(client, png(1))["version"] for _ in range(10)} == {1}
    start(client, FRAGILE, percent=50)
    assert client.post("/models/pets/promote", json={"version": OTHER}).json()["trial"] is None
    assert {ask(client, png(1))["version"] for _ in range(10)} == {OTHER}
    assert client.post("/models/pets/rollback").json()["trial"] is None
    assert {ask(client, png(1))["version"] for _ in range(10)} == {1}
    assert report(client)["canary"]["reason"] == f"version {OTHER} was put into production"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"version": 1, "percent": 5}, 409, "Version 1 of pets is in production"),
        ({"version": DAMAGED, "percent": 5}, 409, "model.ts was changed after it was written"),
        ({"version": 9, "percent": 5}, 404, "no version 9"),
        ({"version": OTHER}, 422, "give either percent or shadow"),
        ({"version": OTHER, "percent": 5, "shadow": True}, 422, "give either percent or shadow"),
        ({"version": OTHER, "percent": 0}, 422, "percent: Input should be greater than 0"),
        ({"version": OTHER, "percent": 100}, 422, "percent: Input should be less than 100"),
        ({"version": OTHER, "percent": 5, "max_slowdown": 1}, 422, "max_slowdown: Input should be greater than 1"),
    ],
)
def test_trial_that_cannot_start(client: httpx.Client, body: dict[str, object], status: int, said: str) -> None:
    answer = client.post("/models/pets/canary", json=body)
    assert answer.status_code == answer.json()["status"] == status
    assert said in answer.json()["detail"]
    assert client.get("/models/pets/canary").status_code == 404
    assert client.delete("/models/pets/canary").status_code == 404
