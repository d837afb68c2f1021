"""Every error is a problem document, and none shows the inside."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI

from app import errors


def test_unexpected_error_tells_nothing_of_the_inside() -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("the password is swordfish")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://refit") as client:
            return await client.get("/fails")

    answer = asyncio.run(ask())
    assert answer.status_code == answer.json()["status"] == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "swordfish" not in answer.text


def test_unexpected_error_of_one_picture_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    document = errors.problem(RuntimeError("the password is swordfish"))
    assert document.status == 500
    assert "swordfish" not in document.detail
    assert "swordfish" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/nowhere", 404, "nothing at /nowhere. See /docs"),
        ("GET", "/predict", 405, "GET is not possible at /predict"),
        ("DELETE", "/models", 405, "DELETE is not possible at /models"),
    ],
)
def test_unknown_address_or_method(client: httpx.Client, method: str, path: str, status: int, said: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]
    assert ("allow" in answer.headers) == (status == 405)


def test_answer_to_an_unknown_method_names_all_that_are_possible(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for template in paths:
        path = re.sub(r"{\w+}", "1", template)
        # /feedback/queue is a prediction's address, too.
        matching = (there for other, there in paths.items() if re.fullmatch(re.sub(r"{\w+}", "[^/]+", other), path))
        possible = {method.upper() for there in matching for method in there}
        possible |= {"HEAD"} if "GET" in possible else set()
        for method in ("PATCH", "OPTIONS"):
            answer = client.request(method, path)
            assert answer.status_code == 405, path
            assert set(answer.headers["allow"].split(", ")) == possible, path


def test_answer_to_an_unknown_method_at_a_file_names_those_that_are_possible(client: httpx.Client) -> None:
    answer = client.post("/web/page.js")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
