"""What passes: requests with a key where keys are asked for, and those that no other page has a browser send.

And what is the same for all addresses: HEAD, and a slash at the end.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.app.jobs import TINY, accepted, shapes, submit
from tests.app.pictures import png
from tests.app.process import Server, serve


@pytest.fixture(scope="module")
def guarded(models: Path) -> Iterator[httpx.Client]:
    with (
        serve(models, api_keys="first-key, second-key") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer second-key"},
        {"X-API-Key": "first-key"},
        {"X-API-Key": "second-key"},
    ],
)
def test_key_lets_in(guarded: httpx.Client, headers: dict[str, str]) -> None:
    assert guarded.post("/predict", files={"file": png(1)}, headers=headers).status_code == 200
    assert guarded.get("/models", headers=headers).status_code == 200
    assert "refit_requests_total" in guarded.get("/metrics", headers=headers).text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer first"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Basic first-key"},
        {"X-API-Key": ""},
        {"X-API-Key": "first-key, second-key"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("GET", "/models"),
        ("GET", "/metrics"),
        ("GET", "/finetune"),
        ("GET", "/models/"),
        ("GET", "/x"),
        ("GET", "/docs/x"),
    ],
)
def test_nobody_else_comes_in(guarded: httpx.Client, method: str, path: str, headers: dict[str, str]) -> None:
    answer = guarded.request(method, path, headers=headers)
    assert answer.status_code == answer.json()["status"] == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


def test_key_that_is_no_ascii_is_wrong_and_no_error(guarded: httpx.Client) -> None:
    assert guarded.get("/models", headers={b"X-API-Key": "clé".encode()}).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/docs", "/openapi.json"])
def test_health_and_what_every_installation_shows_are_open(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_document_names_the_keys(guarded: httpx.Client) -> None:
    document = guarded.get("/openapi.json").json()
    schemes: list[dict[str, list[str]]] = [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation.get("security") == (None if path in {"/healthz", "/readyz"} else schemes), path


@pytest.fixture(scope="module")
def keyless(models: Path) -> Iterator[httpx.Client]:
    with (
        serve(models, hosts="pictures.example.org, Other.example.org") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


OWN_PAGE = [
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://pictures.example.org"},
    {"Sec-Fetch-Site": "none"},
    {"Host": "pictures.example.org:8000", "Origin": "http://pictures.example.org:8000"},
]
OTHER_PAGE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://pictures.example.org"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Host": "pictures.example.org:8000", "Origin": "http://pictures.example.org:3000"},
]


@pytest.mark.parametrize("headers", OWN_PAGE)
def test_own_page_and_programs_pass(keyless: httpx.Client, headers: dict[str, str]) -> None:
    assert keyless.post("/predict", files={"file": png(1)}, headers=headers).status_code == 200
    assert keyless.post("/models/cifar10/rollback", headers=headers).status_code == 409
    assert keyless.get("/models", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", OTHER_PAGE)
def test_page_of_another_site_changes_and_computes_nothing(keyless: httpx.Client, headers: dict[str, str]) -> None:
    for path in ("/predict", "/models/cifar10/rollback", "/finetune"):
        answer = keyless.post(path, files={"file": png(1)}, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:refit:problem:foreign-page")
    assert keyless.delete("/finetune/x", headers=headers).status_code == 403
    assert keyless.get("/models", headers=headers).status_code == 200  # which the browser does not let that page read


def test_keys_do_not_make_pages_of_other_sites_welcome(guarded: httpx.Client) -> None:
    headers = {"X-API-Key": "first-key", "Origin": "https://evil.example"}
    assert guarded.post("/predict", files={"file": png(1)}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1", True),
        ("192.0.2.7:8000", True),
        ("[2001:db8::1]:8000", True),
        ("localhost:8000", True),
        ("refit", True),
        ("school.local:8000", True),
        ("PICTURES.example.org", True),
        ("other.example.org:8000", True),
        ("evil.example", False),
        ("evil.pictures.example.org", False),
        ("127.0.0.1.evil.example:8000", False),
        ("local.evil.example", False),
    ],
)
def test_names_that_strangers_can_have_are_set_where_there_is_no_key(
    keyless: httpx.Client, guarded: httpx.Client, host: str, known: bool
) -> None:
    for path in ("/models", "/"):
        answer = keyless.get(path, headers={"Host": host})
        assert answer.status_code == (200 if known else 421)
    answer = keyless.post("/predict", files={"file": png(1)}, headers={"Host": host})
    assert answer.status_code == (200 if known else 421)
    assert guarded.get("/models", headers={"Host": host, "X-API-Key": "first-key"}).status_code == 200


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", (), 400), ("1.1", ("refit", "other"), 400), ("1.1", ("refit",), 200), ("1.0", (), 200)],
)
@pytest.mark.parametrize("first", ["GET /healthz", "POST /predict"])
def test_a_request_names_one_host(
    server: Server, first: str, version: str, hosts: tuple[str, ...], status: int
) -> None:
    address = urlsplit(server.url)
    head = [
        f"{first} HTTP/{version}",
        *(f"Host: {host}" for host in hosts),
        "Content-Type: image/png",
        "Connection: close",
    ]
    body = png(1) if first.startswith("POST") else b""
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        assert connection.recv(100).split()[1] == b"%d" % status


def test_a_compressed_body_is_named_as_that(client: httpx.Client) -> None:
    def send(encoding: str) -> httpx.Response:
        return client.post(
            "/predict", content=png(1), headers={"content-type": "image/png", "content-encoding": encoding}
        )

    assert send("identity").status_code == 200
    answer = send("gzip")
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:refit:problem:unsupported-media-type")
    assert "Send it without Content-Encoding" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json"])
def test_open_address_with_a_slash_leads_on_with_keys_and_without(
    keyless: httpx.Client, guarded: httpx.Client, path: str
) -> None:
    for client in (keyless, guarded):
        answer = client.get(f"{path}/")
        assert (answer.status_code, httpx.URL(answer.headers["location"]).path) == (307, path)


def test_limit_of_an_address_holds_with_a_slash_too(client: httpx.Client) -> None:
    answer = client.post("/finetune/", content=bytes(5_000_000))  # more than other addresses take here
    assert (answer.status_code, httpx.URL(answer.headers["location"]).path) == (307, "/finetune")


def _head(url: httpx.URL, path: str) -> bytes:
    """All that the server sends in answer to HEAD."""
    with socket.create_connection((url.host, url.port or 0), timeout=60) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: refit\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_head_is_answered_as_get_is_without_a_body(models: Path, tmp_path: Path) -> None:
    with (
        serve(models, keep_feedback=True, data_dir=tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        (prediction,) = client.post("/predict", files={"file": png(1)}).json()["predictions"]
        assert client.get(f"/feedback/{prediction['id']}/picture").status_code == 200  # it is kept
        job = accepted(submit(client, shapes(), name="queued", **TINY))
        names = {"name": "cifar10", "version": 1, "id": prediction["id"], "job": job}
        documented = client.get("/openapi.json").json()["paths"]
        paths = [path.format_map(names) for path, methods in documented.items() if "get" in methods]
        for path in ("/", "/docs", "/openapi.json", "/web/page.js", *paths):
            head, blank, body = _head(client.base_url, path).partition(b"\r\n\r\n")
            assert (blank, body) == (b"\r\n\r\n", b""), path
            first, *lines = head.decode().split("\r\n")
            headers = httpx.Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])
            with client.stream("GET", path) as answer:  # one of them does not end
                assert int(first.split()[1]) == answer.status_code, path
                differing = {"date", "connection", "transfer-encoding", *(["content-length"] * (path == "/metrics"))}
                for sent in (headers, answer.headers):
                    for name in differing & set(sent):
                        del sent[name]
                assert headers == answer.headers, path
        server.wait_logged(f'"HEAD /finetune/{job}/events HTTP/1.1" 200')
