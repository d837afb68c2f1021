"""The application as a whole: what it imports, and its OpenAPI document."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate
from pydantic import SecretStr

from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("none")
    return create_app(Settings(models_dir=folder, device="cpu")).openapi()


@pytest.fixture(scope="module")
def guarded_document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a service that asks for a key."""
    folder: Path = tmp_path_factory.mktemp("none")
    return create_app(Settings(models_dir=folder, device="cpu", api_keys=(SecretStr("key"),))).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


@pytest.mark.parametrize("which", ["document", "guarded_document"])
def test_every_error_is_a_problem(request: pytest.FixtureRequest, which: str) -> None:
    document: dict[str, Any] = request.getfixturevalue(which)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            assert status.startswith("2") or answer["content"] == problem, (name, status)
    assert "ValidationError" not in json.dumps(document)


@pytest.mark.parametrize("which", ["document", "guarded_document"])
def test_document_is_valid(request: pytest.FixtureRequest, which: str) -> None:
    validate(request.getfixturevalue(which))


def test_stream_is_documented(document: dict[str, Any]) -> None:
    content = document["paths"]["/finetune/{job}/events"]["get"]["responses"]["200"]["content"]
    assert content["text/event-stream"]["schema"]["type"] == "string"
    assert "is a Job" in content["text/event-stream"]["schema"]["description"]
    assert "Job" in document["components"]["schemas"]


@pytest.mark.parametrize("which", ["document", "guarded_document"])
def test_every_schema_that_is_named_is_there(request: pytest.FixtureRequest, which: str) -> None:
    document: dict[str, Any] = request.getfixturevalue(which)
    there = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= there


def test_no_two_schemas_have_one_title(document: dict[str, Any]) -> None:
    """Clients that are generated name their classes so, and leave out what would have the name of another."""
    titles = [schema["title"] for schema in document["components"]["schemas"].values() if "title" in schema]
    assert sorted(titles) == sorted(set(titles))


def test_operations_with_parameters_may_find_them_wrong(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert "parameters" not in operation or "422" in operation["responses"], name


def test_operations_with_a_body_may_find_it_too_slow_or_compressed(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert ("requestBody" in operation) == ({"408", "415"} <= operation["responses"].keys()), name
        assert "400" in operation["responses"], name


def test_operations_that_ask_for_a_key_may_miss_it(document: dict[str, Any], guarded_document: dict[str, Any]) -> None:
    assert not any("401" in operation["responses"] for _, operation in operations(document))
    for name, operation in operations(guarded_document):
        assert ("401" in operation["responses"]) == (name not in {"get /healthz", "get /readyz"}), name


def test_other_pages_and_names_are_refused(document: dict[str, Any], guarded_document: dict[str, Any]) -> None:
    for which, unknown_host in ((document, True), (guarded_document, False)):
        for name, operation in operations(which):
            assert ("403" in operation["responses"]) == (not name.startswith("get ")), name
            assert ("421" in operation["responses"]) == unknown_host, name


def test_both_kinds_of_body_are_documented(document: dict[str, Any]) -> None:
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"}
    field = content["multipart/form-data"]["schema"]["properties"]["file"]
    assert (field["type"], field["items"]["format"]) == ("array", "binary")


def test_answers_are_documented(document: dict[str, Any]) -> None:
    answers = document["paths"]["/predict"]["post"]["responses"]
    assert answers["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Predictions"}
    assert set(answers) == {
        *("200", "400", "403", "404", "408", "413", "415", "421", "422", "429", "500", "503", "504")
    }
    problem = answers["415"]["content"]["application/problem+json"]["schema"]["$ref"]
    assert problem.rpartition("/")[2] in document["components"]["schemas"]


def test_json_body_is_documented(document: dict[str, Any]) -> None:
    content = document["paths"]["/models/{name}/promote"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"]["required"] == ["version"]


def test_the_application_is_made_without_torch() -> None:
    code = "import sys, app.main; app.main.create_app(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"APP_DEVICE": "cpu"}, check=False).returncode == 0
