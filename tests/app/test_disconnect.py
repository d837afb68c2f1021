"""Clients that hang up, and deadlines that pass."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.api.disconnect import while_wanted
from app.errors import DeadlineError


async def stays() -> Message:
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def leaves() -> Message:
    return {"type": "http.disconnect"}


def test_work_is_cancelled_when_the_client_hangs_up() -> None:
    cancelled = asyncio.Event()

    async def scenario() -> None:
        with pytest.raises(ClientDisconnect):
            async with while_wanted(leaves):
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()

    asyncio.run(scenario())
    assert cancelled.is_set()


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.01])
def test_work_is_cancelled_when_the_deadline_passes(seconds: float) -> None:
    async def scenario() -> None:
        with pytest.raises(DeadlineError):
            async with while_wanted(stays, asyncio.get_running_loop().time() + seconds):
                await asyncio.Event().wait()

    asyncio.run(scenario())


def test_block_and_its_errors_are_untouched_while_the_client_stays() -> None:
    async def scenario() -> None:
        async with while_wanted(stays):
            await asyncio.sleep(0)
        with pytest.raises(ValueError, match="wrong"):
            async with while_wanted(stays):
                raise ValueError("wrong")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "the watchers have ended"

    asyncio.run(scenario())
