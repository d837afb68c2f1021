"""Refusals before a request is parsed: which requests they are for, and what comes back on a real connection."""

import asyncio
import re
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httptools
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response

from app.refusal import Refusals
from app.serving.admission import Admission
from tests.app.pictures import png
from tests.app.process import Server, serve, upload_begun

LONG = b"X: " + b"x" * 4096  # with which a request goes the longer way
LINES = [
    b"Host: refit",
    b"Content-Type: multipart/form-data; boundary=x-1",
    b"content-length: 4",
    b"Content-Length: 3",
    b"Connection: keep-alive",
    b"X-API-Key: secret",
    b"X-Forwarded-For: 203.0.113.7",
    b"Accept-Encoding: gzip, deflate",
]
STRANGE = [
    b"Connection: close",
    b"Connection: keep-alive, close",
    b"Connection: Upgrade",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Upgrade: websocket",
    b"Content-Length: +4",
    b"Content-Length: 4, 4",
    b"Content-Length : 4",
    b" Content-Length: 4",
    b"X: \x00",
    b"X: \xff",
    b"X: a\nContent-Length: 4",
    b"no colon",
    b"",
]


def request(*lines: bytes, first: bytes = b"POST /predict?top_k=1 HTTP/1.1", body: bytes = b"body") -> bytes:
    return b"\r\n".join((first, *lines, b"", b"")) + body


def answers(*received: bytes, places: int = 0) -> list[Response | None]:
    """What is answered to what arrives in one turn of the event loop while there are so many places."""

    async def ask() -> list[Response | None]:
        refusals = Refusals(Admission(places, 1))
        return [refusals.answer(data) for data in received]

    return asyncio.run(ask())


@dataclass
class Heard:
    """What uvicorn's parser makes of bytes."""

    urls: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    completed: int = 0

    def on_url(self, url: bytes) -> None:
        self.urls.append(url)

    def on_body(self, body: bytes) -> None:
        self.bodies.append(body)

    def on_message_complete(self) -> None:
        self.completed += 1


@pytest.mark.parametrize(
    "data",
    [
        request(b"Content-Length: 4"),
        request(*LINES[:3], *LINES[4:]),
        request(b"content-length:4", first=b"POST /predict HTTP/1.1"),
        request(b"Content-Length: 0", body=b""),
    ],
)
def test_ordinary_request_is_refused_with_when_to_come_back(data: bytes) -> None:
    (answer,) = answers(data)
    assert answer is not None
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert b"0 pictures are in work" in bytes(answer.body)


@pytest.mark.parametrize(
    "data",
    [
        request(b"Host: refit", body=b""),
        request(b"Content-Length: 4", body=b"bod"),
        request(b"Content-Length: 4", body=b"body\r\n"),
        request(b"Content-Length: 4") * 2,
        request(b"Content-Length: 4")[:-8],
        request(b"Content-Length: 4", b"Content-Length: 4"),
        request(b"Content-Length: 4", LONG),
        *(request(b"Content-Length: 4", line) for line in STRANGE),
        *(
            request(b"Content-Length: 4", first=first)
            for first in (
                b"GET /predict HTTP/1.1",
                b"post /predict HTTP/1.1",
                b"POST /predict HTTP/1.0",
                b"POST /predict/ HTTP/1.1",
                b"POST /predict?a b HTTP/1.1",
                b"POST /predictions HTTP/1.1",
                b"POST /finetune HTTP/1.1",
            )
        ),
    ],
)
def test_any_other_request_goes_its_way(data: bytes) -> None:
    assert answers(data) == [None]


@given(st.lists(st.sampled_from(LINES + STRANGE), max_size=6), st.binary(max_size=6))
def test_what_is_refused_is_one_request_to_the_parser_too(lines: list[bytes], body: bytes) -> None:
    data = request(*lines, body=body)
    if answers(data) == [None]:
        return
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    parser.feed_data(data)
    assert (heard.urls, b"".join(heard.bodies), heard.completed) == ([b"/predict?top_k=1"], body, 1)
    assert parser.get_method() == b"POST"
    assert parser.should_keep_alive()
    assert not parser.should_upgrade()


def test_requests_that_arrive_together_share_the_places() -> None:
    data, other = request(b"Content-Length: 4"), request(first=b"GET /healthz HTTP/1.1", body=b"")
    assert [answer is None for answer in answers(other, data, other, data, data, places=2)] == 4 * [True] + [False]


def test_place_is_free_again_when_nobody_took_it() -> None:
    async def ask() -> Response | None:
        refusals = Refusals(Admission(1, 1))
        data = request(b"Content-Length: 4")
        assert refusals.answer(data) is None
        assert refusals.answer(data) is not None
        await asyncio.sleep(0)
        return refusals.answer(data)

    assert asyncio.run(ask()) is None


@pytest.fixture(scope="module")
def small(models: Path) -> Iterator[Server]:
    """A service that takes one picture at a time."""
    with serve(models, max_inflight=1) as server:
        yield server


@pytest.fixture(scope="module")
def full(models: Path) -> Iterator[Server]:
    """A service that is busy with the one picture that it takes."""
    with serve(models, max_inflight=1) as server, upload_begun(server.url):
        yield server


def exchange(connection: socket.socket, data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """The status line, the sorted header lines and the body of the answer."""
    connection.sendall(data)
    received = b""
    while not (found := re.fullmatch(rb"(.*?)\r\n(.*)\r\n\r\n(.*)", received, re.DOTALL)) or len(found[3]) < int(
        re.search(rb"content-length: (\d+)", found[2])[1]  # type: ignore[index]
    ):
        more = connection.recv(65536)
        assert more, received
        received += more
    lines = [line for line in found[2].split(b"\r\n") if not line.startswith(b"date:")]
    return found[1], sorted(lines), found[3]


def test_refusals_are_those_of_the_entrance_and_leave_the_connection_as_it_was(small: Server) -> None:
    picture = png(1)
    ordinary = request(b"Host: refit", b"Content-Type: image/png", b"Content-Length: %d" % len(picture), body=picture)
    other = ordinary.replace(b"Host: refit", b"Host: refit\r\n" + LONG)
    url = httpx.URL(small.url)
    with socket.create_connection((url.host, url.port or 0), timeout=60) as connection:
        with upload_begun(small.url):
            first = exchange(connection, ordinary)
            assert first[0] == b"HTTP/1.1 429 Too Many Requests"
            assert first == exchange(connection, ordinary) == exchange(connection, other)
            with socket.create_connection((url.host, url.port or 0), timeout=60) as second:
                second.sendall(ordinary[:20])
                assert exchange(second, ordinary[20:]) == first  # parsed, as it came in two parts
        while (last := exchange(connection, ordinary))[0].endswith(b"429 Too Many Requests"):
            pass  # until the service knows that the other client has left
        assert last[0] == b"HTTP/1.1 200 OK"
    figures = httpx.get(f"{small.url}/metrics").text
    counted = re.search(r'refit_requests_total\{model="",status="429",version=""\} (\d+)', figures)
    assert counted
    assert int(counted[1]) >= 4
    small.wait_logged('"POST /predict?top_k=1 HTTP/1.1" 429')


@pytest.mark.parametrize("way", [[], [LONG]])
@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([b"X-Forwarded-For: 203.0.113.7"], "203.0.113.7:0"),
        ([b"X-Forwarded-Proto: https", b"x-forwarded-for:[2001:db8::1]:4711"], "2001:db8::1:4711"),
        ([b"X-Forwarded-For: 198.51.100.1", b"X-Forwarded-For: 203.0.113.7, 127.0.0.1"], "203.0.113.7:0"),
        ([b"X-Forwarded-For: ", b"Not-X-Forwarded-For: 203.0.113.7"], "127.0.0.1:{port}"),
    ],
)
def test_log_names_whom_the_proxy_sends_for(full: Server, lines: list[bytes], client: str, way: list[bytes]) -> None:
    first = f"POST /predict?{uuid.uuid4()} HTTP/1.1"
    url = httpx.URL(full.url)
    with socket.create_connection((url.host, url.port or 0), timeout=60) as connection:
        data = request(b"Host: refit", *lines, *way, b"Content-Length: 4", first=first.encode())
        assert exchange(connection, data)[0] == b"HTTP/1.1 429 Too Many Requests"
        port = connection.getsockname()[1]
    full.wait_logged(f'{client.format(port=port)} - "{first}" 429')
