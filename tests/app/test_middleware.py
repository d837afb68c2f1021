"""API keys: asked for everywhere but where health is asked, and at the pages."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.pictures import png
from tests.app.process import serve


@pytest.fixture(scope="module")
def guarded(models: Path) -> Iterator[httpx.Client]:
    with (
        serve(models, api_keys="first-key, second-key") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer second-key"},
        {"X-API-Key": "first-key"},
        {"X-API-Key": "second-key"},
    ],
)
def test_key_lets_in(guarded: httpx.Client, headers: dict[str, str]) -> None:
    assert guarded.post("/predict", files={"file": png(1)}, headers=headers).status_code == 200
    assert guarded.get("/models", headers=headers).status_code == 200
    assert "refit_requests_total" in guarded.get("/metrics", headers=headers).text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer first"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Basic first-key"},
        {"X-API-Key": ""},
        {"X-API-Key": "first-key, second-key"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("GET", "/models"),
        ("GET", "/metrics"),
        ("GET", "/finetune"),
        ("GET", "/docs/"),
        ("GET", "/x"),
        ("GET", "/healthz/"),
    ],
)
def test_nobody_else_comes_in(guarded: httpx.Client, method: str, path: str, headers: dict[str, str]) -> None:
    answer = guarded.request(method, path, headers=headers)
    assert answer.status_code == answer.json()["status"] == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


def test_key_that_is_no_ascii_is_wrong_and_no_error(guarded: httpx.Client) -> None:
    assert guarded.get("/models", headers={b"X-API-Key": "clé".encode()}).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/docs", "/openapi.json"])
def test_health_and_what_every_installation_shows_are_open(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_document_names_the_keys(guarded: httpx.Client) -> None:
    document = guarded.get("/openapi.json").json()
    schemes: list[dict[str, list[str]]] = [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation.get("security") == (None if path in {"/healthz", "/readyz"} else schemes), path
