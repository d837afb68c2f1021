"""What every request passes before it is routed: the API key, and the limit on its body."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLargeError, UnauthorizedError, respond

# The description of the API is that of every installation, and tells nothing of this one.
_OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
_OPEN_FOLDER = "/web/"


@dataclass(frozen=True)
class Limit:
    """Largest body that is taken, in bytes, and the setting that says so."""

    max_bytes: int
    setting: str

    def counted(self, scope: Scope, receive: Receive) -> Receive:
        """What receives the body of a request, and raises BodyTooLargeError where it turns out to be larger.

        Raises:
            BodyTooLargeError: the request says that it is, before it is read.
        """
        if announced(scope) > self.max_bytes:
            raise self._too_large()
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The request body is larger than {self.max_bytes / 1e6:g} MB. Send fewer or smaller files, or have "
            f"{self.setting} raised."
        )


def announced(scope: Scope) -> int:
    """Bytes that the body of a request is said to have; 0 if nothing is said."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


class BodyLimit:
    """Refuses a body that is larger than its limit.

    Args:
        limit: holds for every address.
        exceptions: other limits, by path.
    """

    def __init__(self, app: ASGIApp, limit: Limit, exceptions: Mapping[str, Limit]) -> None:
        self.app = app
        self.limit = limit
        self.exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                receive = self.exceptions.get(scope["path"], self.limit).counted(scope, receive)
            except BodyTooLargeError as error:
                await respond(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Keys:
    """The API keys, one of which a request has to carry.

    Args:
        keys: in plain text.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, scope: Scope) -> None:
        """Take note in a request's scope which key it carries, from 1, for the audit log.

        Raises:
            UnauthorizedError: it carries none of them.
        """
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, and in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        if not any(matches):
            raise UnauthorizedError(
                "Send one of the service's API keys in the header 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            )
        scope["api_key"] = matches.index(True) + 1


class ApiKey:
    """Lets only requests with one of the keys pass. The pages, and whether the service lives, are open to all."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _open(scope["path"]):
            try:
                self.keys.check(scope)
            except UnauthorizedError as error:
                await respond(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
