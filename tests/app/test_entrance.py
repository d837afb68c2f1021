"""The entrance for predictions: it speaks HTTP as the framework does, on a real connection."""

import gc
import socket
import time
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from app.entrance import Entrance
from app.main import create_app
from app.middleware import Limit
from app.settings import Settings
from tests.app.pictures import png
from tests.app.process import Server, listening

END = 60


def post(body: bytes, *more: str, version: str = "1.1", path: str = "/predict") -> bytes:
    lines = (
        f"POST {path} HTTP/{version}",
        "Host: refit",
        "Content-Type: image/png",
        f"Content-Length: {len(body)}",
        *more,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


def port_of(server: Server) -> int:
    return httpx.URL(server.url).port or 0


def exchange(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=END) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("body", "status"), [(png(1), b"200 OK"), (b"no picture", b"415 Unsupported Media Type")], ids=["good", "bad"]
)
@pytest.mark.parametrize(("version", "more"), [("1.1", ["Connection: close"]), ("1.0", [])])
def test_connection_ends_with_the_answer_where_the_client_says_so(
    server: Server, body: bytes, status: bytes, version: str, more: list[str]
) -> None:
    head, _, rest = exchange(port_of(server), post(body, *more, version=version)).partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert b"connection: close" in lines
    assert b"content-length: %d" % len(rest) in lines
    assert b"x-content-type-options: nosniff" in lines


def test_requests_sent_one_after_the_other_are_answered_in_their_order(server: Server) -> None:
    requests = [post(png(seed)) for seed in range(5)] + [post(b"no picture"), post(png(5), "Connection: close")]
    answers = exchange(port_of(server), b"".join(requests)).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 5 + [b"415", b"200"]
    alone = [
        httpx.post(f"{server.url}/predict", content=png(seed), headers={"Content-Type": "image/png"})
        for seed in range(6)
    ]
    assert [answers[place].partition(b"\r\n\r\n")[2] for place in (0, 1, 2, 3, 4, 6)] == [
        each.content for each in alone
    ]


def test_answers_are_in_the_access_log(server: Server) -> None:
    exchange(port_of(server), post(png(1), "Connection: close", path="/predict?top_k=3"))
    server.wait_logged('"POST /predict?top_k=3 HTTP/1.1" 200')
    exchange(port_of(server), post(png(1), version="1.0", path="/%70redict?top_k=0"))
    server.wait_logged('"POST /%70redict?top_k=0 HTTP/1.0" 422')


def test_error_that_nobody_foresaw_tells_nothing_of_the_inside(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Request) -> Response:
        raise RuntimeError("the password is swordfish")

    app = create_app(Settings(models_dir=models, data_dir=tmp_path, device="cpu", engine="torchscript-f32"))
    app.predictions = Entrance(fail, Limit(1000, "APP_MAX_UPLOAD_MB"), [])
    with listening(app) as port:
        answer = httpx.post(f"http://127.0.0.1:{port}/predict", content=b"picture", timeout=END)
    assert answer.status_code == answer.json()["status"] == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "swordfish" not in answer.text
    assert "swordfish" in caplog.text


def test_requests_leave_nothing_to_the_garbage_collector(models: Path, tmp_path: Path) -> None:
    kinds = [post(png(1)), post(b"no picture"), post(png(1), path="/predict?top_k=0")]
    count = 50 * len(kinds)
    app = create_app(Settings(models_dir=models, data_dir=tmp_path, device="cpu", engine="torchscript-f32"))
    with listening(app) as port:
        end = time.monotonic() + END
        while httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=END).is_error:
            assert time.monotonic() < end
            time.sleep(0.05)
        exchange(port, b"".join([*kinds, post(png(1), "Connection: close")]))
        gc.collect()
        answers = exchange(port, b"".join([*50 * kinds, post(b"no picture", "Connection: close")]))
        # Each would leave dozens of objects. What the service does beside them leaves some.
        assert gc.collect() < count
    statuses = [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == 50 * [b"200", b"415", b"422"] + [b"415"]
