"""The service as its users run it: a process of its own on a free port."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import uvicorn
from starlette.types import ASGIApp

from app.connection import Connection
from app.server import Server as HttpServer

_START_SECONDS = 120
# The engine whose answers are those of the file to the last digits, so that swapped answers can be told apart.
_DEFAULTS = {"APP_DEVICE": "cpu", "APP_ENGINE": "torchscript-f32"}


class Server:
    """A started server process; `url` is set once it listens, `log` holds what it has written so far."""

    def __init__(self, models: Path, settings: dict[str, object], arguments: Sequence[str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
        # However busy the machine is, nobody is refused because it is slow.
        settings = {"finetune_workers": 0, "max_wait_seconds": 3600} | settings
        own = {f"APP_{name}".upper(): str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--port", "0", *arguments],
            env=clean | _DEFAULTS | {"APP_MODELS_DIR": str(models), "APP_DATA_DIR": f"{models}-data"} | own,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = ""
        self.log: list[str] = []
        self._written = threading.Condition()
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_listening(self) -> None:
        """Wait until the port is known, or fail with the log."""
        self._listening.wait(_START_SECONDS)
        assert self.url, "the server did not start:\n" + "".join(self.log)

    def wait_ready(self) -> None:
        """Wait until the server says that it is ready, or fail with the log."""
        self.wait_listening()
        end = time.monotonic() + _START_SECONDS
        while not self._ready():
            assert time.monotonic() < end, "the server did not become ready:\n" + "".join(self.log)
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=60).status_code == 200
        except httpx.ConnectError:  # with several workers, the port is known a moment before it is listened on
            return False

    def wait_logged(self, text: str) -> None:
        """Wait until a line with this text is in the log."""
        with self._written:
            found = self._written.wait_for(lambda: any(text in line for line in self.log), _START_SECONDS)
        assert found, f"not logged: {text!r}\n" + "".join(self.log)

    def workers(self) -> list[int]:
        """The processes that the server has started to answer requests."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def stop(self) -> int:
        """End the server as a container engine does, and give its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            for line in lines:
                with self._written:
                    self.log.append(line)
                    self._written.notify_all()
                found = re.search(r"running on (http://\S+)", line)
                if found:
                    self.url = found[1]
                    self._listening.set()
        self._listening.set()


@contextmanager
def serve(models: Path, *arguments: str, ready: bool = True, **settings: object) -> Iterator[Server]:
    """Run a server until the block ends; with `ready` false, the block begins as soon as it listens."""
    server = Server(models, settings, arguments)
    try:
        if ready:
            server.wait_ready()
        else:
            server.wait_listening()
        yield server
    finally:
        server.stop()


def upload_begun(url: str, size: int = 1000) -> socket.socket:
    """A connection on which a picture of `size` bytes is announced, and the server has begun to wait for it."""
    address = urlsplit(url)
    assert address.hostname and address.port
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    connection.sendall(
        b"POST /predict HTTP/1.1\r\nHost: refit\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
        b"Content-Length: %d\r\n\r\n" % size
    )
    assert connection.recv(1000).startswith(b"HTTP/1.1 100")
    return connection


@contextmanager
def listening(app: ASGIApp) -> Iterator[int]:
    """An application on connections of ours, in a thread of the test's own process; gives its port."""
    server = HttpServer(uvicorn.Config(app, port=0, http=Connection, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
