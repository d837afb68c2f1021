"""What every request passes before it is routed: the API key, admission, and the limit on its body."""

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import EXPECTED, BodyTooLargeError, OverloadedError, UnauthorizedError, respond
from app.service import Service
from app.serving.admission import Ticket

# The description of the API is that of every installation, and tells nothing of this one.
_OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
_OPEN_FOLDER = "/web/"
_TICKET = "refit.ticket"


@dataclass(frozen=True)
class Limit:
    """Largest body that is taken, in bytes, and the setting that says so."""

    max_bytes: int
    setting: str


class BodyLimit:
    """Refuses a body that says it is too large before it is read, and one that turns out to be while it is read.

    Args:
        limit: holds for every address.
        exceptions: other limits, by path.
    """

    def __init__(self, app: ASGIApp, limit: Limit, exceptions: Mapping[str, Limit]) -> None:
        self.app = app
        self.limit = limit
        self.exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.exceptions.get(scope["path"], self.limit)
        if _announced(scope) > limit.max_bytes:
            await respond(_too_large(limit))(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit.max_bytes:
                raise _too_large(limit)
            return message

        await self.app(scope, counted, send)


def _announced(scope: Scope) -> int:
    """Bytes that the body is said to have; 0 if nothing is said."""
    return int(next((value for name, value in scope["headers"] if name == b"content-length"), b"0"))


def _too_large(limit: Limit) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The request body is larger than {limit.max_bytes / 1e6:g} MB. Send fewer or smaller files, or have "
        f"{limit.setting} raised."
    )


class Admit:
    """Lets a request for a prediction in, or refuses it before anything else is done for it.

    Refusing is what an overloaded service does most often, and what that costs is taken from those that were let in.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service: Service = scope["app"].state.service
        try:
            ticket = service.admission.enter(_announced(scope))
        except OverloadedError as error:
            await respond(error)(scope, receive, send)
            return
        with ticket:
            scope[_TICKET] = ticket
            await self.app(scope, receive, send)


def ticket_of(scope: Scope) -> Ticket:
    """What a request for a prediction holds."""
    found: Ticket = scope[_TICKET]
    return found


class Endpoint:
    """An endpoint, called without a router and without what the framework wraps around routes.

    Args:
        endpoint: makes the answer.
    """

    def __init__(self, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        self.endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self.endpoint(Request(scope, receive))
        except EXPECTED as error:
            answer = respond(error)
        await answer(scope, receive, send)


class ApiKey:
    """Lets only requests with one of the keys pass. The pages, and whether the service lives, are open to all.

    Args:
        keys: the keys, in plain text.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _open(scope["path"]):
            await self.app(scope, receive, send)
            return
        number = self._number(Headers(scope=scope))
        if number:
            scope["api_key"] = number  # which key it was, for the audit log
            await self.app(scope, receive, send)
            return
        error = UnauthorizedError(
            "Send one of the service's API keys in the header 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
        )
        await respond(error)(scope, receive, send)

    def _number(self, headers: Headers) -> int:
        """Which of the keys the request carries, from 1; 0 is none of them."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, and in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(given.encode("latin-1"), key) for key in self.keys]
        return matches.index(True) + 1 if any(matches) else 0


def _open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
