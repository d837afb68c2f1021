"""The HTTP server: uvicorn's, which takes many new connections at a time."""

import asyncio
import contextlib
import logging
import socket
import sys
import time

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app import telemetry
from training.errors import InputError

log = logging.getLogger(__name__)

_COPIES = 15  # of a listening socket
# A process that answers nothing for so long is taken for dead. One that starts has to import all before it answers,
# which takes many times longer on a busy machine; another one in its place would take as long.
_HUNG_SECONDS = 120


def run(config: uvicorn.Config) -> None:
    """Serve until a signal says to end, as `uvicorn.run` does, in as many processes as `config.workers`.

    Each process listens on several descriptors of one socket. libuv accepts one connection of a descriptor in a turn of
    the event loop (its pull request 3696). While pictures are computed a turn takes milliseconds, and the last of some
    hundred clients that come at once would wait half a second before anybody reads what it sent.

    Raises:
        InputError: somebody else listens on the address of several processes.
        SystemExit: it did not start; the log says why.
    """
    if config.workers > 1:
        config.timeout_worker_healthcheck = _HUNG_SECONDS  # what SIGHUP gives each new process to start in
        Processes(config, listen(config)).run()
        return
    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # which the server raises anew when it has ended
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def listen(config: uvicorn.Config) -> list[socket.socket]:
    """The descriptors for several processes. From now on clients wait for them, and nobody else can have the address.

    Raises:
        InputError: somebody else has it.
    """
    listener = config.bind_socket()
    try:
        listener.listen(config.backlog)  # uvloop would not say that this fails
    except OSError as error:
        listener.close()
        raise InputError(f"Port {config.port} of {config.host}: {error.strerror}. Choose another port.") from error
    return [listener, *_copies(listener)]


class Processes(Multiprocess):
    """Several server processes, which refuse new connections as soon as they are told to end."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._asked: dict[Process, float] = {}  # when each was asked what it has not answered yet

    def keep_subprocess_alive(self) -> None:
        """Replace processes that have ended, and those that hang.

        No answer is waited for, unlike in uvicorn's: meanwhile others could end, and signals be given to this process.
        """
        telemetry.keep_folder()
        for place, process in enumerate(self.processes):
            if process.process.is_alive() and not self._hangs(process):
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE:
                log.error("Process %d failed to start, and so would others. The log above says why.", process.pid)
                self.should_exit.set()
                return
            log.warning(
                "Process %d has ended, or did not answer for %d s; another one starts", process.pid, _HUNG_SECONDS
            )
            self._asked.pop(process, None)
            self.processes[place] = Process(self.config, self.sockets)
            self.processes[place].start()

    def _hangs(self, process: Process) -> bool:
        try:
            if process.parent_conn.poll():
                process.parent_conn.recv()
                self._asked.pop(process, None)
            if process not in self._asked:
                process.parent_conn.send(b"ping")
        except (OSError, EOFError):
            return True
        return time.monotonic() - self._asked.setdefault(process, time.monotonic()) > _HUNG_SECONDS

    def terminate_all(self) -> None:
        """Tell them to end. Connections would go on being made while this process listened, and never be answered."""
        super().terminate_all()
        for listener in self.sockets:
            listener.close()


class Server(uvicorn.Server):
    """The server of a single process, which says that it listens when it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the application, then listen on the configured address or on these sockets."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        for server in self.servers[:]:
            for copy in (copy for listener in server.sockets for copy in _copies(listener)):
                self.servers.append(await loop.create_server(self._connect, sock=copy, backlog=self.config.backlog))

    def _connect(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _copies(listener: socket.socket) -> list[socket.socket]:
    return [socket.fromfd(listener.fileno(), listener.family, listener.type) for _ in range(_COPIES)]
