"""The HTTP server, with many clients that come at once."""

import asyncio
import socket

import pytest
import uvicorn
import uvloop
from starlette.responses import PlainTextResponse

from app.server import Server

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
