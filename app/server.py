"""The HTTP server: uvicorn's, which takes many new connections at a time."""

import asyncio
import contextlib
import socket
import sys

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

_COPIES = 15  # of a listening socket


def run(config: uvicorn.Config) -> None:
    """Serve until a signal says to end, as `uvicorn.run` does, in as many processes as `config.workers`.

    Each process listens on several descriptors of one socket. libuv accepts one connection of a descriptor in a turn of
    the event loop (its pull request 3696). While pictures are computed a turn takes milliseconds, and the last of some
    hundred clients that come at once would wait half a second before anybody reads what it sent.

    Raises:
        SystemExit: it did not start; the log says why.
    """
    if config.workers > 1:
        listener = config.bind_socket()
        Multiprocess(config, [listener, *_copies(listener)]).run()
        return
    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # which the server raises anew when it has ended
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


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
