"""The server's HTTP/1.1 connections: no client holds one by sending its request slowly, or not at all."""

import asyncio
import logging
import re
import resource
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypedDict, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr

from app.access_log import ACCESS
from app.api.disconnect import Client
from app.errors import HUNG_UP, HeadTooLargeError, MalformedRequestError, ServiceError, TooSlowError, respond
from app.refusal import Refusals
from app.transport import GatheringTransport

log = logging.getLogger(__name__)

_LEAST_RATE = 10_000  # bytes a second
_OTHER_DESCRIPTORS = 200  # for files and processes, which a service needs whoever keeps connections open
_MOST_HEAD_BYTES = 65_536  # of address and headers, besides what arrives together with their beginning
_CYCLE = "refit.cycle"
_ENDED = "refit.ended"  # by what status the connection answered a request in the application's place
_UPGRADE = re.compile(rb"(?i)\r\nupgrade:")
_FORWARDED_FOR = re.compile(rb"(?im)^x-forwarded-for:[ \t]*(.*?)\r?$")

Header = tuple[bytes, bytes]


class State(TypedDict):
    """What the application tells its connections, as the state of its lifespan.

    Attributes:
        receive_seconds: that a request may take to arrive, besides one for every 10 kB of it.
        stopping: set by the first connection that hears of the server's end, which the application hears of only when
            all answers have ended.
        refusals: what is answered without being parsed.
    """

    receive_seconds: float
    stopping: asyncio.Event
    refusals: Refusals


class Connection(HttpToolsProtocol):
    """uvicorn's own, closed when a request does not arrive in time, as Apache's mod_reqtimeout does.

    uvicorn bounds the time between requests alone. Requests that arrive at once, the usual ones, set no timer.
    """

    _timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None  # of a head that has not ended, but for what came with its beginning

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_logger = ACCESS
        self._client = Client()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathering = GatheringTransport(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._gathering))
        self._expect()
        if len(self.connections) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_DESCRIPTORS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._between:
            data = _without_upgrade(data)
            if answer := self.app_state["refusals"].answer(data):
                self._refuse(answer, data)
                return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._end(HeadTooLargeError(f"More than {_MOST_HEAD_BYTES:,} bytes. Shorten the address and headers."))
                return
        super().data_received(data)
        if self.cycle is not None and self.cycle.scope is self.scope and not self.cycle.more_body:
            if self._timer:
                self._stop()
            return
        if self._timer is None:
            self._expect()
        self._received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)
        self._client.leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._client.attach(cast(Scope, self.scope))

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        cast(Scope, cycle.scope)[_CYCLE] = cycle
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        self.app_state["stopping"].set()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's own, in plain text)
        detail = "This is not HTTP/1.1. Check the request's first line, its headers, and the lengths that it announces."
        self._end(MalformedRequestError(detail))

    @property
    def _between(self) -> bool:
        """Whether all requests that have begun to arrive are answered, and the client reads the answers."""
        if self.flow.write_paused or self.pipeline:
            return False
        if self.cycle is None:
            return self.scope is None
        return self._answered() and self.cycle.response_complete and not self.cycle.more_body

    def _make_room(self) -> None:
        """Close the connection that has been of no use for longest, or this one if all others are at work."""
        others = (cast(Connection, other) for other in self.connections if other is not self)
        idle = (other for other in others if other._between)
        min(idle, key=Connection._idle_until, default=self).transport.close()

    def _idle_until(self) -> float:
        """When a connection between two requests is closed, in seconds of the event loop's clock."""
        alarm = self.timeout_keep_alive_task
        return alarm.when() if alarm else self._since + self.timeout_keep_alive

    def _refuse(self, answer: Response, data: bytes) -> None:
        """Send the answer to a request that was not parsed."""
        self._stop()
        self._gathering.send(_refusal(answer, tuple(self.server_state.default_headers)))
        if self.access_log:
            line, _, headers = data.partition(b"\r\n\r\n")[0].partition(b"\r\n")
            self.access_logger.info('%s - "%s" %d', self._name(headers), line.decode("ascii"), answer.status_code)
        alarm = self.timeout_keep_alive_task
        # To set it anew each time takes longer than all else; a second of two minutes is of no matter.
        if alarm is None or alarm.when() - self.loop.time() < self.timeout_keep_alive - 1:
            self.on_response_complete()

    def _name(self, headers: bytes) -> str:
        """The client as the log names it, which is the one that a trusted proxy names."""
        client, proxies = self.client, cast(ProxyHeadersMiddleware, self.app).trusted_hosts
        if client and (named := _FORWARDED_FOR.findall(headers)) and client[0] in proxies:
            forwarded = proxies.get_trusted_client_address(b", ".join(named).decode("latin-1"))
            client = forwarded if forwarded[0] else client
        return get_client_addr(cast(Any, {"client": client}))

    def _expect(self) -> None:
        """Begin to wait for a request, or for the rest of one."""
        self._since, self._received = self.loop.time(), 0
        self._timer = self.loop.call_later(self.app_state["receive_seconds"], self._check)

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        if self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue):
            self._expect()  # it is the service that keeps the client waiting, as while a model is loaded
            return
        due = self._since + self.app_state["receive_seconds"] + self._received / _LEAST_RATE
        if self.loop.time() < due:
            self._timer = self.loop.call_at(due, self._check)
            return
        log.info("Closed a connection of %s: the request did not arrive in time", self.client and self.client[0])
        self._end(TooSlowError(f"The request came at less than {_LEAST_RATE / 1000:g} kB a second. Send it anew."))

    def _answered(self) -> bool:
        return self.cycle.scope is self.scope and self.cycle.response_started

    def _end(self, error: ServiceError) -> None:
        """Answer the request that has begun to arrive, if one has, and close the connection."""
        if self.scope is not None and (self.cycle is None or not self._answered()):
            answer = respond(error)
            headers = (*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close"))
            self.transport.write(_encoded(answer, headers))
            scope = cast(Scope, self.scope)
            scope[_ENDED] = answer.status_code
            if self.access_log:
                name = self._name(b"\r\n".join(map(b": ".join, scope["headers"])))
                self.access_logger.info('%s - "%s" %d', name, _first_line(scope), answer.status_code)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """The beginning of a request, without the wish for another protocol: there is none (RFC 9110, section 7.8).

    The parser would take what follows the head for that protocol's, and the body would be lost.
    """
    end = data.find(b"\r\n\r\n")
    head = data[:end] if end >= 0 else data
    if b"upgrade" not in head.lower():
        return data
    return _UPGRADE.sub(b"\r\nIgnored-Upgrade:", head) + data[len(head) :]


async def send_whole(answer: Response, scope: Scope, receive: Receive, send: Send) -> int:
    """Send an answer whose headers are the service's own, to any request but HEAD.

    uvicorn looks for forbidden characters in each of them, as it has to for headers that come from anywhere. That takes
    longer than making most answers. To a server without our connections it is sent as others are.

    Returns:
        The status that was sent, be it by the connection itself; 499 if the client has hung up.
    """
    # Taken out, because the two hold each other: garbage of 35 objects a request takes 150 ms to find now and then.
    cycle: RequestResponseCycle | None = scope.pop(_CYCLE, None)
    if cycle is None:
        await answer(scope, receive, send)
        return answer.status_code
    if cycle.flow.write_paused and not cycle.disconnected:
        await cycle.flow.drain()
    if not cycle.disconnected:
        _send(answer, scope, cycle)
        return answer.status_code
    ended = cast(Scope, cycle.scope).get(_ENDED)
    if ended is None and cycle.access_log:
        _log(cycle, scope, HUNG_UP)
    return ended or HUNG_UP


def _send(answer: Response, scope: Scope, cycle: RequestResponseCycle) -> None:
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    if cycle.access_log:
        _log(cycle, scope, answer.status_code)
    headers = [*cycle.default_headers, *answer.raw_headers]
    if not cycle.keep_alive:
        headers.append((b"connection", b"close"))
    cycle.transport.write(_encoded(answer, headers))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


def _log(cycle: RequestResponseCycle, scope: Scope, status: int) -> None:
    cycle.access_logger.info('%s - "%s" %d', get_client_addr(cycle.scope), _first_line(scope), status)


def _first_line(scope: Scope) -> str:
    """How a request began, for the log; a dash if its head has not ended."""
    if "raw_path" not in scope:
        return "-"
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    return f"{scope['method']} {(scope['raw_path'] + query).decode('ascii')} HTTP/{scope['http_version']}"


@lru_cache(maxsize=1)
def _refusal(answer: Response, defaults: tuple[Header, ...]) -> bytes:
    return _encoded(answer, (*defaults, *answer.raw_headers))


def _encoded(answer: Response, headers: Iterable[Header]) -> bytes:
    """An answer as it is sent, with these headers."""
    lines = [b"%s: %s\r\n" % header for header in headers]
    return b"".join((STATUS_LINE[answer.status_code], *lines, b"\r\n", answer.body))
