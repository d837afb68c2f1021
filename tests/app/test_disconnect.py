"""Clients that hang up, and deadlines that pass."""

import asyncio
from contextlib import suppress
from typing import Any

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


@pytest.mark.parametrize("turns", range(6))
def test_client_may_hang_up_in_the_moment_in_which_the_block_ends(turns: int) -> None:
    problems: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        with suppress(ClientDisconnect):
            async with while_wanted(leaves):
                for _ in range(turns):
                    await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    asyncio.run(scenario())
    assert problems == []


def test_client_may_hang_up_in_the_moment_in_which_the_deadline_passes() -> None:
    problems: list[dict[str, Any]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        gone = asyncio.Event()

        async def leaves_late() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        deadline = loop.time() + 0.01
        loop.call_at(deadline, gone.set)
        with pytest.raises((ClientDisconnect, DeadlineError)):
            async with while_wanted(leaves_late, deadline):
                await asyncio.Event().wait()
        await asyncio.sleep(0.001)

    asyncio.run(scenario())
    assert problems == []


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
