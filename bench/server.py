"""A server under test: started as its users start it, watched, and ended with everything that it started."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

_START_SECONDS = 180
_TICK = os.sysconf("SC_CLK_TCK")


class Server:
    """A running server in a session of its own; `start_seconds` is how long it took to answer 200."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, start_seconds: float) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.start_seconds = start_seconds
        self._process = process

    def memory_mb(self) -> float:
        """Memory of all its processes, shared pages divided (PSS), in MB."""
        return sum(_pss(pid) for pid in self._pids()) * 1024 / 1e6

    def busy_cores(self, seconds: float) -> float:
        """Processors that it keeps busy on average."""
        before = self._cpu_seconds()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / seconds

    def _cpu_seconds(self) -> float:
        fields = filter(None, map(_stat, self._pids()))
        return sum(int(found[11]) + int(found[12]) for found in fields) / _TICK

    def _pids(self) -> list[int]:
        """The server, and all that descends from it: its fine-tune worker is in a process group of its own."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        parents = {pid: int(fields[1]) for pid in pids if (fields := _stat(pid))}
        family = [self._process.pid]
        for member in family:  # which grows meanwhile
            family += [pid for pid, parent in parents.items() if parent == member]
        return family


def _pss(pid: int) -> int:
    """Kilobytes of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _stat(pid: int) -> Sequence[str]:
    """Fields of /proc/PID/stat from the third on, none if the process has ended; the second of them is its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ()


@contextmanager
def serve(command: Sequence[str], environment: Mapping[str, str], ready: str, log: Path) -> Iterator[Server]:
    """Run a server until the block ends.

    Args:
        command: with `{port}` where the port goes.
        environment: in addition to this process's own.
        ready: path of the address that answers 200 when the server is ready.
        log: file for what it writes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603 (our own commands)
            [part.format(port=port) for part in command],
            env={**os.environ, **environment},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready}", log)
        yield Server(process, port, time.perf_counter() - started)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@contextmanager
def service(models: Path, data: Path, model: str, engine: str, log: Path) -> Iterator[Server]:
    """Run the service as `make serve` does until the block ends.

    Args:
        models: folder of the models.
        data: folder for what the service writes.
        model: answers requests that name none.
        engine: `APP_ENGINE`.
        log: file for what it writes.
    """
    environment = {
        "APP_MODELS_DIR": str(models),
        "APP_DATA_DIR": str(data),
        "APP_DEFAULT_MODEL": model,
        "APP_ENGINE": engine,
    }
    with serve([sys.executable, "-m", "app", "serve", "--port", "{port}"], environment, "/readyz", log) as server:
        yield server


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"The server did not start. See {log}.")
