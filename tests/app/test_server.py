"""The HTTP server: many clients that come at once, and several processes that start and end."""

import asyncio
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.responses import PlainTextResponse

from app.server import Server, listen
from tests.app.process import serve, upload_begun
from training.errors import InputError

CLIENTS = 128
TURNS = 24


async def turns(server: uvicorn.Server) -> int:
    """How often the event loop turns until it has taken all clients that came while it did something else."""
    config = server.config
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    address = server.servers[0].sockets[0].getsockname()
    clients = [socket.create_connection(address) for _ in range(CLIENTS)]
    count = 0
    while len(server.server_state.connections) < CLIENTS:
        await asyncio.sleep(0)
        count += 1
    for client in clients:
        client.close()
    await server.shutdown()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return count


@pytest.mark.parametrize(("kind", "least", "most"), [(uvicorn.Server, CLIENTS, 10 * CLIENTS), (Server, 1, TURNS)])
def test_many_new_connections_are_taken_in_a_turn(kind: type[uvicorn.Server], least: int, most: int) -> None:
    config = uvicorn.Config(PlainTextResponse("hello"), port=0, log_config=None, lifespan="off")
    assert least <= uvloop.run(turns(kind(config))) <= most


def test_address_is_taken_at_once_and_by_nobody_else() -> None:
    listeners = listen(uvicorn.Config(PlainTextResponse("hello"), port=0, log_config=None, workers=2))
    address = listeners[-1].getsockname()
    with socket.create_connection(address), socket.socket() as other, pytest.raises(OSError, match="already in use"):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(address)
    for listener in listeners:
        listener.close()


def test_address_that_somebody_else_listens_on_is_an_error() -> None:
    with socket.socket() as other, pytest.raises(InputError, match="already in use"):
        listen(Overtaken(other, PlainTextResponse("hello"), port=0, log_config=None, workers=2))


class Overtaken(uvicorn.Config):
    """Somebody else listens on the address between the moments in which it is bound and listened on."""

    def __init__(self, other: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._other = other

    def bind_socket(self) -> socket.socket:
        bound = super().bind_socket()
        self._other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._other.bind(bound.getsockname())
        self._other.listen()
        return bound


def test_process_that_does_not_answer_for_a_while_is_not_ended(models: Path) -> None:
    with serve(models, "--workers", "2") as server:
        worker = server.workers()[0]
        watched = os.pidfd_open(worker)
        os.kill(worker, signal.SIGSTOP)  # as one is that the machine has no time for
        ended, _, _ = select.select([watched], [], [], 8)
        os.kill(worker, signal.SIGCONT)
        os.close(watched)
        assert not ended
        assert worker in server.workers()


def test_process_that_is_killed_is_replaced_although_another_one_hangs(models: Path) -> None:
    with serve(models, "--workers", "2") as server:
        hung, killed = server.workers()
        os.kill(hung, signal.SIGSTOP)
        os.kill(killed, signal.SIGKILL)
        try:
            end = time.monotonic() + 60  # uvicorn asks one process after another, and would wait 120 s for this one
            while len(found := set(server.workers())) < 2 or killed in found:
                assert time.monotonic() < end
                time.sleep(0.05)
            assert hung in found
        finally:
            os.kill(hung, signal.SIGCONT)


def test_new_connections_are_refused_while_several_processes_end(models: Path) -> None:
    with serve(models, "--workers", "2") as server, upload_begun(server.url) as begun:
        os.kill(server.process.pid, signal.SIGTERM)
        while not refused(begun.getpeername()):
            time.sleep(0.01)
        begun.sendall(bytes(1000))
        assert begun.recv(4096).startswith(b"HTTP/1.1 415 ")


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False
