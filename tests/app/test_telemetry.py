"""`/metrics` and `Server-Timing`: what is counted is what was sent."""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.app.pictures import png
from tests.app.process import Server, serve, upload_begun

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: httpx.Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def requests(samples: Samples) -> dict[tuple[str, str, str], float]:
    found = ((dict(labels), count) for (name, labels), count in samples.items() if name == "refit_requests_total")
    return {(labels["model"], labels["version"], labels["status"]): count for labels, count in found}


@pytest.fixture
def measured(models: Path) -> Iterator[httpx.Client]:
    """A client of a server that nobody else asks."""
    with serve(models, max_upload_mb=1) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_requests_are_counted_by_who_answered_and_how(measured: httpx.Client) -> None:
    good, bad = png(1), b"no picture"
    for query, data in (("", good), ("", good), ("?version=2", good), ("?model=pets", good), ("", bad)):
        measured.post(f"/predict{query}", files={"file": data})
    measured.post("/predict", files=[("file", good), ("file", bad), ("file", good)])
    for number in range(3):
        measured.post(f"/predict?model=unknown{number}", files={"file": good})
    measured.post(f"/predict?version={10**6}", files={"file": good})
    measured.post("/predict?top_k=x", files={"file": good})
    measured.post("/predict", content=b"x" * 1_500_000, headers={"Content-Type": "image/png"})
    measured.get("/models")

    samples = scrape(measured)
    assert requests(samples) == {
        ("cifar10", "1", "200"): 3,
        ("cifar10", "2", "200"): 1,
        ("pets", "1", "200"): 1,
        ("cifar10", "1", "415"): 1,
        ("", "", "404"): 4,
        ("", "", "422"): 1,
        ("", "", "413"): 1,
    }
    decoded = {"model": "cifar10", "stage": "decode"}
    assert value(samples, "refit_stage_seconds_count", **decoded) == 7
    assert value(samples, "refit_stage_seconds_count", model="cifar10", stage="batch_wait") == 5
    assert value(samples, "refit_stage_seconds_sum", **decoded) > 0
    assert value(samples, "refit_batch_pictures_sum", model="cifar10") == 5
    assert value(samples, "refit_inference_seconds_count", model="pets") == 1
    assert value(samples, "refit_requests_in_flight") == 0
    loaded = {"model": "cifar10", "version": "2", "engine": "torchscript-f32"}
    assert value(samples, "refit_model_loaded", **loaded) == 1


def test_requests_in_work_are_counted(server: Server, client: httpx.Client) -> None:
    while value(scrape(client), "refit_requests_in_flight"):
        pass  # a client of an earlier test has only just hung up
    with upload_begun(server.url):
        assert value(scrape(client), "refit_requests_in_flight") == 1


@pytest.mark.parametrize("pictures", [1, 20])
def test_server_timing(client: httpx.Client, pictures: int) -> None:
    started = time.perf_counter()
    answer = client.post("/predict", files=[("file", png(seed)) for seed in range(pictures)])
    took = 1000 * (time.perf_counter() - started)
    found = re.fullmatch(
        r"decode;dur=([\d.]+), queue;dur=([\d.]+), inference;dur=([\d.]+)", answer.headers["server-timing"]
    )
    assert found
    assert all(0 <= float(part) <= took for part in found.groups())
    assert float(found[1]) > 0
    assert float(found[3]) > 0


def test_only_answers_carry_timings(client: httpx.Client) -> None:
    assert "server-timing" not in client.post("/predict", files={"file": b"no picture"}).headers
    assert "server-timing" not in client.get("/models").headers


def serving(server: Server) -> int:
    return sum("Serving cifar10 version 1" in line for line in server.log)


def test_requests_that_end_without_an_answer_of_the_application_are_counted_and_logged(models: Path) -> None:
    with serve(models, max_receive_seconds=1) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with upload_begun(server.url) as slow:
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        upload_begun(server.url).close()
        server.wait_logged('"POST /predict HTTP/1.1" 408')
        server.wait_logged('"POST /predict HTTP/1.1" 499')
        assert requests(scrape(client)) == {("", "", "408"): 1, ("", "", "499"): 1}
        assert sum('"POST /predict' in line for line in server.log) == 2
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60) as malformed:
            malformed.sendall(b"BREW /predict HTTP/1.1\r\n\r\n")
            assert malformed.recv(4096).startswith(b"HTTP/1.1 400 ")
        server.wait_logged('"-" 400')


def test_processes_are_measured_together(models: Path) -> None:
    one_request_each = httpx.Limits(max_keepalive_connections=0)
    with (
        serve(models, "--workers", "2") as server,
        httpx.Client(base_url=server.url, timeout=60, limits=one_request_each) as client,
    ):
        while serving(server) < 2:  # the first of them answers while the second still loads
            time.sleep(0.1)
        for _ in range(40):
            client.post("/predict", files={"file": png(1)})
        samples = scrape(client)
        assert requests(samples) == {("cifar10", "1", "200"): 40}
        assert value(samples, "refit_stage_seconds_count", model="cifar10", stage="decode") == 40
        assert value(samples, "refit_model_loaded", model="cifar10", version="1", engine="torchscript-f32") == 2
        with upload_begun(server.url):
            assert value(scrape(client), "refit_requests_in_flight") == 1
            # What a killed process had in work is in work no more; what it had answered stays answered.
            for worker in server.workers():
                os.kill(worker, signal.SIGKILL)
            while serving(server) < 4:
                time.sleep(0.1)
        server.wait_ready()
        samples = scrape(client)
        assert value(samples, "refit_requests_in_flight") == 0
        assert requests(samples) == {("cifar10", "1", "200"): 40}


def test_processes_start_although_the_folder_of_their_figures_was_removed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with (
        serve(models, "--workers", "2") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        while serving(server) < 2:  # the first of them answers while the second still loads
            time.sleep(0.1)
        (folder,) = tmp_path.glob("refit-metrics-*")
        shutil.rmtree(folder)
        server.wait_logged("was removed with the figures in it")
        assert client.get("/metrics").status_code == 200
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        while serving(server) < 4:
            assert not any("Traceback" in line for line in server.log)
            time.sleep(0.1)
        server.wait_ready()
        assert httpx.post(f"{server.url}/predict", files={"file": png(1)}, timeout=60).status_code == 200
        answer = httpx.get(f"{server.url}/metrics", timeout=60)
        assert 'refit_requests_total{model="cifar10",status="200",version="1"} 1.0' in answer.text
