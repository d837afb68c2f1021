"""The application as a whole: what it imports, and its OpenAPI document."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("none")
    return create_app(Settings(models_dir=folder, device="cpu")).openapi()


def test_both_kinds_of_body_are_documented(document: dict[str, Any]) -> None:
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"}
    field = content["multipart/form-data"]["schema"]["properties"]["file"]
    assert (field["type"], field["items"]["format"]) == ("array", "binary")


def test_answers_are_documented(document: dict[str, Any]) -> None:
    answers = document["paths"]["/predict"]["post"]["responses"]
    assert answers["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Predictions"}
    assert set(answers) == {"200", "404", "413", "415", "422", "429", "500", "503", "504"}
    problem = answers["415"]["content"]["application/problem+json"]["schema"]["$ref"]
    assert problem.rpartition("/")[2] in document["components"]["schemas"]


def test_json_body_is_documented(document: dict[str, Any]) -> None:
    content = document["paths"]["/models/{name}/promote"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"]["required"] == ["version"]


def test_the_application_is_made_without_torch() -> None:
    code = "import sys, app.main; app.main._device('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
