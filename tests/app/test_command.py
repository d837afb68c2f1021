"""The command line: exit codes, messages, signals."""

import os
import resource
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.app.jobs import TINY, accepted, shapes, submit
from tests.app.pictures import png
from tests.app.process import serve, upload_begun


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env=clean | {"APP_FINETUNE_WORKERS": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_wrong_settings_are_all_named() -> None:
    ended = run("serve", APP_PORT="70000", APP_DEVICE="tpu")
    assert ended.returncode == 2
    assert "APP_PORT is '70000'" in ended.stderr
    assert "APP_DEVICE is 'tpu'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("APP_API_KEYS", "secret,,other"), ("APP_DATABASE_URL", "mysql://me:secret@host/refit")]
)
def test_secrets_are_not_shown(name: str, value: str) -> None:
    ended = run("serve", **{name: value})
    assert ended.returncode == 2
    assert f"{name}: " in ended.stderr
    assert "secret" not in ended.stderr


@pytest.mark.parametrize("arguments", [["serve", "--port", "http"], ["serve", "--workers", "0"], ["sing"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize(
    "name", ["MAX_UPLOAD_MB", "MAX_DATASET_MB", "MAX_INFLIGHT_MB", "FEEDBACK_MAX_MB", "FEEDBACK_MAX_DAYS"]
)
def test_infinity_is_one_line(name: str) -> None:
    ended = run("serve", **{f"APP_{name}": "inf"})
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"APP_{name} is 'inf': ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_device_that_is_not_there(workers: str) -> None:
    ended = run("serve", APP_DEVICE="cuda", APP_WORKERS=workers, CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "No CUDA device" in line


def test_port_that_is_taken(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("serve", "--port", str(taken.getsockname()[1]), APP_MODELS_DIR=str(models))
    assert ended.returncode == 1
    assert "address already in use" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_service_after_the_request_in_work(models: Path, number: signal.Signals) -> None:
    with serve(models) as server:
        data = png(1)
        with upload_begun(server.url, len(data)) as connection:
            server.process.send_signal(number)
            connection.sendall(data)
            assert b" 200 OK" in connection.recv(1000)
        assert server.process.wait(30) == 0
    assert not any("Traceback" in line for line in server.log)


def test_followers_of_a_job_do_not_hold_up_the_end(models: Path, tmp_path: Path) -> None:
    with serve(models, data_dir=tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        job = accepted(submit(client, shapes(), name="queued", **TINY))
        with client.stream("GET", f"/finetune/{job}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data:")
            server.process.send_signal(signal.SIGTERM)
            list(lines)  # they end as they should: it would be an error if they were cut off
        assert server.process.wait(30) == 0
    assert not any("Traceback" in line or "timeout graceful shutdown exceeded" in line for line in server.log)


@pytest.mark.parametrize(("trusted", "logged"), [("127.0.0.0/8", "203.0.113.7"), ("192.0.2.1", "127.0.0.1")])
def test_proxies_are_believed_if_they_are_trusted(tmp_path: Path, trusted: str, logged: str) -> None:
    with serve(tmp_path, ready=False, trusted_proxies=trusted) as server:
        assert httpx.get(f"{server.url}/healthz", headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 200
    (line,) = (line for line in server.log if "GET /healthz" in line)
    assert f" {logged}:" in line


def test_workers_share_the_port(models: Path) -> None:
    with serve(models, "--workers", "2", access_log="false") as server:
        answers = [httpx.post(f"{server.url}/predict", files={"file": png(1)}, timeout=60) for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 8
        assert server.stop() == 0
    assert not any("POST /predict" in line for line in server.log)
    assert sum("threads compute" in line and "shared by 2" in line for line in server.log) == 2


def test_idle_connections_keep_nobody_out(models: Path) -> None:
    with serve(models) as server, ExitStack() as stack:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (250, 250))
        url = httpx.URL(server.url)
        begun = stack.enter_context(upload_begun(server.url))
        idle = []
        for _ in range(300):
            idle.append(stack.enter_context(socket.create_connection((url.host, url.port or 0), timeout=60)))
            idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: refit\r\n\r\n")
            assert idle[-1].recv(4096).startswith(b"HTTP/1.1 200 OK")
        assert idle[0].recv(4096) == b""  # closed
        begun.sendall(bytes(1000))
        assert begun.recv(4096).startswith(b"HTTP/1.1 415 ")
        assert httpx.post(f"{server.url}/predict", files={"file": png(1)}, timeout=60).status_code == 200


def test_workers_end_when_the_process_that_started_them_is_killed(models: Path) -> None:
    with serve(models, "--workers", "2") as server:
        workers = [os.pidfd_open(worker) for worker in server.workers()]
        server.process.kill()
        ended = [bool(select.select([worker], [], [], 60)[0]) for worker in workers]
        for worker in workers:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker, signal.SIGKILL)
            os.close(worker)
    assert ended == [True, True]
