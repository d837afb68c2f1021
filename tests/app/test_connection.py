"""Connections whose requests come slowly or strangely, on a real server with an application that counts bytes."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app.connection import _MOST_HEAD_BYTES, State
from app.refusal import Refusals
from app.serving.admission import Admission
from tests.app.process import listening

SECONDS = 0.5
LATE = 3 * SECONDS  # after which the application begins to read
END = 60


async def count(request: Request) -> PlainTextResponse:
    if request.url.path == "/late":
        await asyncio.sleep(LATE)
    return PlainTextResponse(str(len(await request.body())))


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[State]:
    yield State(receive_seconds=SECONDS, stopping=asyncio.Event(), refusals=Refusals(Admission(0, 0)))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = Starlette(routes=[Route(f"/{name}", count, methods=["POST"]) for name in ("now", "late")], lifespan=lifespan)
    with listening(app) as opened:
        yield opened


@pytest.fixture
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=END) as connected:
        yield connected


def headers(path: str, size: int, *more: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: refit", f"Content-Length: {size}", *more)
    return "\r\n".join((*lines, "", "")).encode()


def rest(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def test_connection_without_a_request_is_closed(connection: socket.socket) -> None:
    assert rest(connection) == b""


@pytest.mark.parametrize("begun", [b"POST /now HTTP/1.1\r\nHost:", headers("/now", 100), headers("/now", 100) + b"x"])
def test_request_that_does_not_go_on_is_refused(connection: socket.socket, begun: bytes) -> None:
    connection.sendall(begun)
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"content-type: application/problem+json" in answer
    assert b"urn:refit:problem:too-slow" in answer


def test_one_byte_after_another_is_too_slow(connection: socket.socket) -> None:
    connection.sendall(headers("/now", 1_000_000))
    connection.settimeout(0.02)
    answer = b""
    end = time.monotonic() + END
    while not answer:
        assert time.monotonic() < end
        connection.sendall(b"x")
        try:
            answer = connection.recv(4096)
        except TimeoutError:
            continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_second_request_of_a_connection_has_its_own_time(connection: socket.socket) -> None:
    connection.sendall(headers("/now", 3) + b"abc")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
    time.sleep(2 * SECONDS)  # nothing is expected of the client here
    connection.sendall(headers("/now", 3) + b"ab")
    assert rest(connection).startswith(b"HTTP/1.1 408 ")


def test_client_that_is_refused_may_stay_silent(connection: socket.socket) -> None:
    for _ in range(2):
        connection.sendall(headers("/predict", 3) + b"abc")
        assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")
        time.sleep(2 * SECONDS)  # nothing is expected of it here
    connection.sendall(headers("/now", 3, "Connection: close") + b"abc")
    assert rest(connection).endswith(b"3")


def test_body_that_comes_fast_enough_may_take_longer(connection: socket.socket) -> None:
    size = 1_000_000  # which have 100 seconds more
    connection.sendall(headers("/now", size, "Connection: close") + bytes(size - 1))
    time.sleep(2 * SECONDS)
    connection.sendall(b"x")
    assert rest(connection).endswith(b"1000000")


def test_body_that_is_read_late_is_not_late(port: int) -> None:
    size = 300_000  # more than is read ahead
    assert httpx.post(f"http://127.0.0.1:{port}/late", content=bytes(size), timeout=END).text == str(size)


def test_client_that_waits_to_be_asked_is_not_late(connection: socket.socket) -> None:
    connection.sendall(headers("/late", 3, "Connection: close", "Expect: 100-continue"))
    assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
    connection.sendall(b"abc")
    assert rest(connection).endswith(b"3")


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"POST /", b"a"),
        (b"POST /now HTTP/1.1\r\nx: ", b"a"),
        (b"POST /now HTTP/1.1\r\n", b"a: b\r\n"),
    ],
)
def test_head_without_an_end_is_refused(connection: socket.socket, begun: bytes, more: bytes) -> None:
    connection.sendall(begun)
    received = b""
    connection.setblocking(False)
    sent, end = 0, time.monotonic() + END
    while not received and sent < 100 * _MOST_HEAD_BYTES and time.monotonic() < end:
        try:
            sent += connection.send(more * 1000)
            received = connection.recv(4096)
        except BlockingIOError:
            continue
        except ConnectionError:
            break  # what was still under way when the server closed the connection takes the answer with it
    assert not received or received.startswith(b"HTTP/1.1 431 ")
    assert _MOST_HEAD_BYTES < sent < 100 * _MOST_HEAD_BYTES


def test_large_head_that_ends_is_read(connection: socket.socket) -> None:
    cookies = [f"Cookie: {'x' * 8000}" for _ in range(7)]
    connection.sendall(headers("/now", 3, *cookies, "Connection: close") + b"abc")
    assert rest(connection).endswith(b"3")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("protocol", ["Upgrade: h2c", "upgrade:websocket"])
def test_wish_for_another_protocol_is_ignored(connection: socket.socket, protocol: str, together: bool) -> None:
    head = headers("/now", 3, "Connection: Upgrade, HTTP2-Settings", protocol, "HTTP2-Settings: AAMAAABkAAQ")
    for _ in range(2):
        if together:
            connection.sendall(head + b"abc")
        else:
            connection.sendall(head)
            connection.sendall(b"abc")
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"\r\n\r\n3")


MALFORMED = [
    b"POST /now HTTP/1.1\r\nHost: refit\r\nContent-Length: -1\r\n\r\n",
    b"POST /now HTTP/1.1\r\nHost: refit\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /now HTTP/1.1\r\nHost: refit\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"BREW /now HTTP/1.1\r\nHost: refit\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
]


@pytest.mark.parametrize("earlier", [b"", headers("/now", 3) + b"abc"])
@pytest.mark.parametrize("malformed", MALFORMED)
def test_what_is_no_request_is_answered_with_a_problem(
    connection: socket.socket, malformed: bytes, earlier: bytes
) -> None:
    if earlier:
        connection.sendall(earlier)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
    connection.sendall(malformed)
    head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert {b"content-type: application/problem+json", b"connection: close"} <= set(head.split(b"\r\n"))
    document = json.loads(body)
    assert document.pop("detail")
    assert document == {"type": "urn:refit:problem:malformed-request", "title": "Malformed request", "status": 400}


def test_malformed_rest_of_a_request_is_not_answered_again(connection: socket.socket) -> None:
    connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: refit\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 404 ")
    connection.sendall(b"zz\r\n")
    assert rest(connection) == b""
