"""`GET /models` and what is below it."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from tests.app.artifacts import write
from tests.app.pictures import png
from tests.app.process import serve
from tests.app.test_audit import lines


def test_list(client: httpx.Client) -> None:
    found = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert set(found) == {"changed", "cifar10", "pets", "unpromoted", "unreadable"}
    assert [name for name, model in found.items() if model["default"]] == ["cifar10"]
    assert [name for name, model in found.items() if model["error"]] == ["changed", "unreadable"]
    assert found["unpromoted"]["aliases"] == {"production": None, "history": []}


def test_one_model(client: httpx.Client) -> None:
    model = client.get("/models/cifar10").json()
    assert model["versions"] == [1, 2]
    assert model["aliases"] == {"production": 1, "history": [1]}
    assert model["serving"] == 1
    assert 1 in model["loaded"]


def test_version_is_the_manifest(client: httpx.Client, models: Path) -> None:
    answer = client.get("/models/cifar10/versions/2")
    assert answer.status_code == 200
    assert answer.json() == json.loads((models / "cifar10/2/manifest.json").read_text())


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("ship", 404, "no model 'ship'. Models: changed, cifar10"),
        ("%2e%2e", 404, "no model '..'"),
        (".runs", 404, "no model '.runs'"),
        ("cifar10/versions/3", 404, "no version 3. Versions: 1, 2."),
        ("ship/versions/1", 404, "no model 'ship'"),
        (f"cifar10/versions/{2**64}", 404, f"no version {2**64}."),
        (f"cifar10/versions/{'9' * 5000}", 422, "Unable to parse input string as an integer"),
        ("cifar10/versions/new", 422, "'version' is 'new'"),
        ("unreadable/versions/1", 503, "not a valid manifest"),
    ],
)
def test_what_is_not_there(client: httpx.Client, path: str, status: int, said: str) -> None:
    answer = client.get(f"/models/{path}")
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("ship/promote", 404, "no model 'ship'. Models: changed, cifar10"),
        ("cifar10/promote", 404, "no version 3. Versions: 1, 2."),
        ("changed/promote", 404, "no version 3. Versions: 1."),
        ("ship/rollback", 404, "no model 'ship'"),
        ("cifar10/rollback", 409, "No other version of cifar10 was in production before 1."),
    ],
)
def test_change_that_is_not_possible(client: httpx.Client, path: str, status: int, said: str) -> None:
    answer = client.post(f"/models/{path}", json={"version": 3})
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"", "application/json", 422, "the body: Invalid JSON"),
        (b"[2]", "application/json", 422, "the body: Input should be an object"),
        (b"{}", "application/json", 422, "version: Field required"),
        (b'{"version": 0}', "application/json", 422, "version: Input should be greater than 0"),
        (b'{"version": 18446744073709551616}', "application/json", 404, "no version 18446744073709551616."),
        (b'{"version": ' + b"9" * 5000 + b"}", "application/json", 422, "number out of range"),
        (b'{"version": "2"}', "application/json", 422, "version: Input should be a valid integer"),
        (b'{"version": true}', "application/json", 422, "version: Input should be a valid integer"),
        (b'{"version": 2, "force": true}', "application/json", 422, "force: Extra inputs are not permitted"),
        (b'{"version": 2}', "text/plain", 415, "The content type is text/plain. Send JSON"),
        (b'{"version": 2}', "", 415, "The content type is missing. Send JSON"),
    ],
)
def test_body_that_cannot_be_read(client: httpx.Client, body: bytes, kind: str, status: int, said: str) -> None:
    answer = client.post("/models/cifar10/promote", content=body, headers={"Content-Type": kind})
    assert answer.status_code == answer.json()["status"] == status
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_body_above_the_limit(client: httpx.Client, chunked: bool) -> None:
    body = b'{"version": 2' + b" " * 5_000_000 + b"}"
    parts = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    answer = client.post(
        "/models/cifar10/promote", content=parts if chunked else body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == answer.json()["status"] == 413
    assert "APP_MAX_UPLOAD_MB" in answer.json()["detail"]


def test_version_in_the_place_of_a_deleted_one_answers_once_it_is_promoted(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = write(tmp_path, "pets", seed, promote=seed == 1)
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.post("/models/pets/promote", json={"version": 2}).status_code == 200
        assert client.post("/models/pets/rollback").status_code == 200
        shutil.rmtree(folder)
        assert write(tmp_path, "pets", seed=3, classes=("heron", "stork"), promote=False) == folder
        assert client.post("/models/pets/promote", json={"version": 2}).status_code == 200
        answer = client.post("/predict", files={"file": png(1)}).json()
    assert answer["version"] == 2
    assert answer["predictions"][0]["label"] in {"heron", "stork"}


def test_audit_log_names_the_key_and_does_not_show_it(tmp_path: Path) -> None:
    write(tmp_path / "models", "pets", seed=1)
    write(tmp_path / "models", "pets", seed=2, promote=False)
    with (
        serve(tmp_path / "models", data_dir=tmp_path / "data", api_keys="first-key, second-key") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        answer = client.post("/models/pets/promote", json={"version": 2}, headers={"X-API-Key": "second-key"})
        assert answer.status_code == 200
        assert client.post("/models/pets/rollback").status_code == 401
    (line,) = lines(tmp_path / "data")
    assert line["who"] == "127.0.0.1 with API key 2"
    assert not any("second-key" in entry for entry in server.log)
