"""`GET /models` and what is below it."""

import json
from pathlib import Path

import httpx
import pytest


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
        ("cifar10/versions/new", 422, "'version' is 'new'"),
        ("unreadable/versions/1", 503, "not a valid manifest"),
    ],
)
def test_what_is_not_there(client: httpx.Client, path: str, status: int, said: str) -> None:
    answer = client.get(f"/models/{path}")
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]
