"""Request bodies: what is refused, and what the answer says to do about it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app.pictures import png
from tests.app.process import Server, serve, upload_begun

LIMIT = 4_000_000  # of the server in conftest


def check(answer: httpx.Response, status: int, said: str) -> None:
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size // 100_000):
        yield bytes(100_000)


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x", None])
def test_empty_body(client: httpx.Client, content_type: str | None) -> None:
    check(client.post("/predict", headers={"Content-Type": content_type} if content_type else {}), 422, "file")


def test_form_without_fields(client: httpx.Client) -> None:
    answer = client.post("/predict", content=b"--x--\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"})
    check(answer, 422, "The form is empty")


@pytest.mark.parametrize("name", ["files", "image", "File"])
def test_wrong_field_name(client: httpx.Client, name: str) -> None:
    answer = client.post("/predict", files={name: png(1)})
    check(answer, 422, f"field '{name}'; pictures are expected in the field 'file'")


def test_text_in_place_of_a_file(client: httpx.Client) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ncat.png\r\n--x--\r\n'
    answer = client.post("/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    check(answer, 422, "-F file=@picture.png, with the @")


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_wrong_content_type(client: httpx.Client, content_type: str) -> None:
    check(client.post("/predict", content=b"{}", headers={"Content-Type": content_type}), 415, content_type)


def test_missing_content_type(client: httpx.Client) -> None:
    check(client.post("/predict", content=b"{}"), 415, "content type is missing")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"this is no form"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n"),
    ],
)
def test_malformed_form(client: httpx.Client, content_type: str, body: bytes) -> None:
    check(client.post("/predict", content=body, headers={"Content-Type": content_type}), 422, "cannot be read")


def test_announced_body_over_the_limit(client: httpx.Client) -> None:
    answer = client.post("/predict", files={"file": bytes(LIMIT)})  # the form around it takes it over the limit
    check(answer, 413, "larger than 4 MB")
    assert client.get("/healthz").status_code == 200


def test_chunked_body_over_the_limit(client: httpx.Client) -> None:
    answer = client.post("/predict", content=zeros(3 * LIMIT), headers={"Content-Type": "image/png"})
    check(answer, 413, "larger than 4 MB")


def test_body_at_the_limit(client: httpx.Client) -> None:
    answer = client.post("/predict", content=zeros(LIMIT), headers={"Content-Type": "image/png"})
    check(answer, 415, "not a picture")


@pytest.mark.parametrize("count", [257, 500])
def test_too_many_files(client: httpx.Client, count: int) -> None:
    check(client.post("/predict", files=[("file", png(1))] * count), 413, "more than 256 files")


def test_most_files(client: httpx.Client) -> None:
    answer = client.post("/predict", files=[("file", png(1))] * 256)
    assert len(answer.json()["predictions"]) == 256


def test_client_that_hangs_up_in_the_middle_of_a_body(server: Server, client: httpx.Client) -> None:
    before = len(server.log)
    with upload_begun(server.url):
        pass
    assert client.post("/predict", files={"file": png(1)}).status_code == 200
    assert not any("Traceback" in line for line in server.log[before:])


def test_overload_is_refused_until_there_is_room(models: Path) -> None:
    data = png(1)
    with (
        serve(models, max_inflight=2) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        with upload_begun(server.url, len(data)) as connection, upload_begun(server.url):
            refused = client.post("/predict", files={"file": data})
            check(refused, 429, "2 pictures are in work")
            assert int(refused.headers["retry-after"]) >= 1
            connection.sendall(data)
            assert b" 200 OK" in connection.recv(1000)
        assert client.post("/predict", files={"file": data}).status_code == 200


def test_wait_that_is_too_long_is_refused(models: Path) -> None:
    stop = threading.Event()

    def keep_busy(client: httpx.Client) -> None:
        while not stop.is_set():
            client.post("/predict", files=[("file", png(1))] * 256)

    with (
        serve(models, max_wait_seconds=0.0001) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor() as threads,
    ):
        threads.submit(keep_busy, client)
        # The service has to work for a second before it knows how long pictures take.
        try:
            while "take more than" not in (refused := client.post("/predict", files={"file": png(1)})).text:
                pass
        finally:
            stop.set()
        check(refused, 429, "take more than 0.0001 seconds")
        assert int(refused.headers["retry-after"]) >= 1
