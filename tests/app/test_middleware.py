"""API keys: asked for everywhere but where health is asked."""

from collections.abc import Iterator

import httpx
import pytest

from tests.app.pictures import png
from tests.app.process import Server


@pytest.fixture(scope="module")
def stranger(guarded: Server) -> Iterator[httpx.Client]:
    """A client that sends no key of its own accord."""
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
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
def test_key_lets_in(stranger: httpx.Client, headers: dict[str, str]) -> None:
    assert stranger.post("/predict", files={"file": png(1)}, headers=headers).status_code == 200
    assert stranger.get("/models", headers=headers).status_code == 200


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
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/x"),
        ("GET", "/healthz/"),
    ],
)
def test_nobody_else_comes_in(stranger: httpx.Client, method: str, path: str, headers: dict[str, str]) -> None:
    answer = stranger.request(method, path, headers=headers)
    assert answer.status_code == answer.json()["status"] == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


def test_key_that_is_no_ascii_is_wrong_and_no_error(stranger: httpx.Client) -> None:
    assert stranger.get("/models", headers={b"X-API-Key": "clé".encode()}).status_code == 401


def test_health_is_open(stranger: httpx.Client) -> None:
    assert stranger.get("/healthz").status_code == 200
    assert stranger.get("/readyz").status_code == 200


def test_document_names_the_keys(stranger: httpx.Client) -> None:
    document = stranger.get("/openapi.json", headers={"X-API-Key": "first-key"}).json()
    assert document["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
