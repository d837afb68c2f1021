"""Clients that hang up, and deadlines that pass."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.api.disconnect import Client, Wanted, client_of
from app.errors import DeadlineError


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_work_is_cancelled_when_the_client_hangs_up(turns: int) -> None:
    cancelled = asyncio.Event()

    async def scenario() -> None:
        client = Client()

        async def hang_up() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            client.leave()

        leaving = asyncio.create_task(hang_up())
        with pytest.raises(ClientDisconnect):
            async with Wanted(client):
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()
        await leaving
        assert not client.watchers

    asyncio.run(scenario())
    assert cancelled.is_set()


def test_nothing_is_done_for_a_client_that_has_left_already() -> None:
    async def scenario() -> None:
        client = Client()
        client.leave()
        with pytest.raises(ClientDisconnect):
            async with Wanted(client):
                await asyncio.Event().wait()

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.01])
def test_work_is_cancelled_when_the_deadline_passes(seconds: float) -> None:
    async def scenario() -> None:
        with pytest.raises(DeadlineError):
            async with Wanted(Client(), asyncio.get_running_loop().time() + seconds):
                await asyncio.Event().wait()

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(6))
def test_client_may_hang_up_in_the_moment_in_which_the_block_ends(turns: int) -> None:
    problems: list[dict[str, Any]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        client = Client()
        loop.call_soon(lambda: loop.call_soon(client.leave))
        with suppress(ClientDisconnect):
            async with Wanted(client):
                for _ in range(turns):
                    await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    asyncio.run(scenario())
    assert problems == []


@pytest.mark.parametrize("first", ["client", "deadline"])
def test_client_may_hang_up_in_the_moment_in_which_the_deadline_passes(first: str) -> None:
    problems: list[dict[str, Any]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        client = Client()
        deadline = loop.time() + 0.01
        if first == "client":
            loop.call_at(deadline, client.leave)
        with pytest.raises((ClientDisconnect, DeadlineError)):
            async with Wanted(client, deadline):
                if first == "deadline":
                    loop.call_at(deadline, client.leave)
                await asyncio.Event().wait()
        await asyncio.sleep(0.001)

    asyncio.run(scenario())
    assert problems == []


def test_block_and_its_errors_are_untouched_while_the_client_stays() -> None:
    async def scenario() -> None:
        client = Client()
        async with Wanted(client):
            await asyncio.sleep(0)
        with pytest.raises(ValueError, match="wrong"):
            async with Wanted(client):
                raise ValueError("wrong")
        client.leave()  # nobody listens any more
        await asyncio.sleep(0)

    asyncio.run(scenario())


def test_every_request_of_a_connection_has_its_client() -> None:
    client = Client()
    first: dict[str, Any] = {}
    client.attach(first)
    assert client_of(first) is client
    assert not client_of({}).gone
