"""Clients that hang up."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.api.disconnect import unless_gone


def test_work_is_cancelled_when_the_client_hangs_up() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def scenario() -> None:
        with pytest.raises(ClientDisconnect):
            await unless_gone(receive, work())
        await cancelled.wait()

    asyncio.run(scenario())


def test_result_and_error_come_through_while_the_client_stays() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def right() -> int:
        return 42

    async def wrong() -> int:
        raise ValueError("wrong")

    async def scenario() -> None:
        assert await unless_gone(receive, right()) == 42
        with pytest.raises(ValueError, match="wrong"):
            await unless_gone(receive, wrong())

    asyncio.run(scenario())
