"""JSON request bodies.

FastAPI's own parsing answers 400 to any error that reading the body raises, the one for a body above the limit
included; read here, that stays 413.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.errors import InvalidRequestError, UnsupportedMediaError

M = TypeVar("M", bound=BaseModel)

_JSON = "application/json"


async def read_json(request: Request, model: type[M]) -> M:
    """Read the body of a request.

    Raises:
        UnsupportedMediaError: its content type is not JSON.
        InvalidRequestError: it is not what the model describes.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:  # also keeps pages of other origins out: a browser asks before it sends this type
        raise UnsupportedMediaError(f"The content type is {kind or 'missing'}. Send JSON, with the type {_JSON}.")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        found = (f"{'.'.join(map(str, entry['loc'])) or 'the body'}: {entry['msg']}" for entry in error.errors())
        raise InvalidRequestError(f"{'; '.join(found)}. See /docs.") from error


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """What an operation's OpenAPI entry says about a body that `read_json` reads."""
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": model.model_json_schema()}}}}
