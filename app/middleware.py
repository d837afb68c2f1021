"""What every request passes before it is routed: whose page sends it, the API key, and the limit on its body."""

import hmac
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BodyTooLargeError,
    ForeignPageError,
    MalformedRequestError,
    ServiceError,
    UnauthorizedError,
    UnknownHostError,
    UnsupportedMediaError,
    respond,
)

# The description of the API is that of every installation, and tells nothing of this one.
_OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
_OPEN_FOLDER = "/web/"

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PLAIN = frozenset({b"", b"identity"})
_OWN_SITES = frozenset({b"same-origin", b"none"})
# Strangers cannot have a name with such an ending lead anywhere: RFC 6761, 6762, 8375, ICANN's `internal`, and `lan`,
# which routers give out and no registry does.
_LOCAL_ENDINGS = (".localhost", ".local", ".home.arpa", ".internal", ".lan")


Check = Callable[[Scope], None]


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
                # With a slash at its end, the address leads on to the one without: the limit is that one's.
                limit = self.exceptions.get(scope["path"].rstrip("/"), self.limit)
                receive = limit.counted(scope, receive)
            except BodyTooLargeError as error:
                await respond(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Keys:
    """The API keys, one of which a request has to carry.

    The pages, and whether the service lives, are open to all.

    Args:
        keys: in plain text.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, scope: Scope) -> None:
        """Take note in a request's scope which key it carries, from 1, for the audit log.

        Raises:
            UnauthorizedError: it carries none of them, and needs one.
        """
        path = scope["path"]
        # With a slash at its end, an open address leads on to the one without, and tells no more than that.
        if (path.rstrip("/") or "/") in _OPEN_PATHS or path.startswith(_OPEN_FOLDER):
            return
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


def check_head(scope: Scope) -> None:
    """Return if a request says once for whom it is, and sends its body as it is.

    Raises:
        MalformedRequestError: it names no host, or several (RFC 9112, section 3.2).
        UnsupportedMediaError: its body is compressed (RFC 9110, section 15.5.16).
    """
    hosts = 0
    for name, value in scope["headers"]:
        if name == b"host":
            hosts += 1
        elif name == b"content-encoding" and value.lower() not in _PLAIN:
            encoding = value.decode("latin-1")
            raise UnsupportedMediaError(f"The body is compressed ({encoding}). Send it without Content-Encoding.")
    if hosts != 1 and scope["http_version"] == "1.1":
        raise MalformedRequestError("A request has one header Host, which names the service.")


class Origins:
    """Refuses what a page of somebody else has a browser send to the service, which the browser can reach.

    What changes or computes something is refused where the browser says that another page sends it, as Go's
    http.CrossOriginProtection does. And a name of the page's own site may lead to the service (DNS rebinding): then the
    browser takes that page for the service's own, so names that others can own have to be set.

    Args:
        hosts: those names; None lets all names pass, where keys say who may come in.
    """

    def __init__(self, hosts: Sequence[str] | None) -> None:
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    def check(self, scope: Scope) -> None:
        """Return if the request may pass.

        Raises:
            ForeignPageError: another page sends it.
            UnknownHostError: it is for a name that was not set.
        """
        host = origin = site = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        own = site in _OWN_SITES if site else not origin or origin.partition(b"://")[2] == host
        if not own and scope["method"] not in _SAFE_METHODS:
            raise ForeignPageError("A page of another site sends this. Use the service's own page, or a program.")
        if self._hosts is not None and not self._is_own(_hostname(host.decode("latin-1"))):
            raise UnknownHostError(
                "The service does not know itself by this name. Have APP_HOSTS set to the names that lead to it, or "
                "APP_API_KEYS."
            )

    def _is_own(self, host: str) -> bool:
        """Whether a name is set, or one that no stranger can have lead to the service."""
        return "." not in host or host in (self._hosts or ()) or host.endswith(_LOCAL_ENDINGS) or _is_address(host)


class Guard:
    """Lets only requests pass that all checks let pass; each raises a ServiceError otherwise."""

    def __init__(self, app: ASGIApp, checks: Sequence[Check]) -> None:
        self.app = app
        self.checks = checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                for check in self.checks:
                    check(scope)
            except ServiceError as error:
                await respond(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET, without the body: FastAPI's routes do not know it (RFC 9110, section 9.1)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self.app(scope, receive, send)


def _without_body(send: Send) -> Send:
    """What sends an answer up to its body, which may be a stream that would not end."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})

    return send_head


def _hostname(host: str) -> str:
    """The name in the header `Host`, without a port, in small letters."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0].lower()


@lru_cache(maxsize=64)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
