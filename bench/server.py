"""A server under test: started as its users start it, watched, and ended with everything that it started."""

import os
import signal
import socket
import subprocess
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
        total = 0
        for pid in self._pids():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total * 1024 / 1e6

    def busy_cores(self, seconds: float) -> float:
        """Processors that it keeps busy on average."""
        before = self._cpu_seconds()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / seconds

    def _cpu_seconds(self) -> float:
        fields = [_stat(pid) for pid in self._pids()]
        return sum(int(found[11]) + int(found[12]) for found in fields) / _TICK

    def _pids(self) -> list[int]:
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return [pid for pid in pids if (fields := _stat(pid)) and int(fields[3]) == self._process.pid]


def _stat(pid: int) -> Sequence[str]:
    """Fields of /proc/PID/stat from the third on, none if the process has ended; the fourth of them is its session."""
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
