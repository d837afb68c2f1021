"""The gathering transport, on a real connection of the event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from app.transport import GatheringTransport


class Counted:
    """A transport that counts what reaches the real one."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.writes: list[int] = []

    def write(self, data: bytes) -> None:
        self.writes.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def run(scenario: Callable[[GatheringTransport, Counted, asyncio.StreamReader], Awaitable[None]]) -> None:
    """Run a scenario with a transport, what counts its writes, and what the other end of its connection receives."""

    async def connected() -> None:
        loop = asyncio.get_running_loop()
        accepted: asyncio.Future[asyncio.Transport] = loop.create_future()

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                accepted.set_result(transport)

        server = await loop.create_server(Accepting, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            counted = Counted(await accepted)
            await scenario(GatheringTransport(counted, loop), counted, reader)  # type: ignore[arg-type]
            writer.close()

    asyncio.run(connected())


def test_what_is_written_in_one_turn_is_sent_at_once() -> None:
    async def scenario(transport: GatheringTransport, counted: Counted, reader: asyncio.StreamReader) -> None:
        transport.write(b"head ")
        transport.write(b"body ")
        assert counted.writes == []
        assert await reader.readexactly(10) == b"head body "
        transport.write(b"next")
        assert await reader.readexactly(4) == b"next"
        assert counted.writes == [10, 4]

    run(scenario)


def test_what_is_sent_at_once_comes_after_what_waits() -> None:
    async def scenario(transport: GatheringTransport, counted: Counted, reader: asyncio.StreamReader) -> None:
        transport.write(b"first ")
        transport.send(b"second")
        assert counted.writes == [12]
        assert await reader.readexactly(12) == b"first second"

    run(scenario)


def test_much_is_not_held() -> None:
    async def scenario(transport: GatheringTransport, counted: Counted, reader: asyncio.StreamReader) -> None:
        for _ in range(4):
            transport.write(b"x" * 40_000)
        assert counted.writes == [80_000, 80_000]
        assert await reader.readexactly(160_000) == b"x" * 160_000

    run(scenario)


def test_what_was_written_is_sent_before_the_connection_is_closed() -> None:
    async def scenario(transport: GatheringTransport, _: Counted, reader: asyncio.StreamReader) -> None:
        transport.write(b"last")
        transport.close()
        assert transport.is_closing()
        assert await reader.read() == b"last"

    run(scenario)


def test_nothing_is_sent_on_a_connection_that_was_lost() -> None:
    async def scenario(transport: GatheringTransport, counted: Counted, reader: asyncio.StreamReader) -> None:
        transport.write(b"late")
        transport.abort()
        assert await reader.read() == b""
        assert counted.writes == []

    run(scenario)
