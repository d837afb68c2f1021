"""The OpenAPI document: FastAPI's own, mended where it does not know what this service answers."""

from collections.abc import Iterator, Mapping
from typing import Any

from app.errors import documented

_NEVER_ANSWERED = ("HTTPValidationError", "ValidationError")  # FastAPI's own description of 422


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Put into a document, in place, the problems that do not depend on what an operation does; gives it back."""
    every = [each for operations in document["paths"].values() for each in operations.items()]
    keys = any(operation.get("security") for _, operation in every)
    for method, operation in every:
        _describe_streams(operation)
        answers = operation["responses"] | documented(*_common(method, operation, keys))
        operation["responses"] = dict(sorted(answers.items()))
    for name in _NEVER_ANSWERED:
        document["components"]["schemas"].pop(name, None)
    return document


def _describe_streams(operation: Mapping[str, Any]) -> None:
    """Put a schema in place of `itemSchema`, which FastAPI writes for streams and OpenAPI 3.1 does not know."""
    for answer in operation["responses"].values():
        for content in answer.get("content", {}).values():
            if item := content.pop("itemSchema", None):
                name = item["properties"]["data"]["contentSchema"]["$ref"].rpartition("/")[2]
                content["schema"] = {"type": "string", "description": f"Each line `data:` is a {name}."}


def _common(method: str, operation: Mapping[str, Any], keys: bool) -> Iterator[int]:
    """Statuses of the problems that an operation shares with all of its kind, where `keys` are asked for or are not."""
    if operation.get("security"):
        yield 401
    yield 400
    if method != "get":
        yield 403
    if not keys:
        yield 421
    if "requestBody" in operation:
        yield 408
        yield 415
    if "422" in operation["responses"]:
        yield 422
