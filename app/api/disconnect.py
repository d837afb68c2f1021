"""Clients that hang up, and deadlines that pass: what was being done for them is given up."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import DeadlineError


@asynccontextmanager
async def while_wanted(receive: Receive, deadline: float = math.inf) -> AsyncIterator[None]:
    """Cancel what the block does as soon as nobody wants it any more.

    Args:
        receive: of a request whose body has been read to its end.
        deadline: time of the event loop's clock.

    Raises:
        ClientDisconnect: the client has hung up.
        DeadlineError: the deadline has passed.
    """
    loop = asyncio.get_running_loop()
    gone = over = False
    try:
        async with asyncio.timeout_at(None if deadline == math.inf else deadline) as scope:

            def leave(task: asyncio.Task[None]) -> None:
                nonlocal gone
                # In the moment in which the client leaves, the block may end or the deadline pass.
                if not (over or scope.expired() or task.cancelled()):
                    gone = True
                    scope.reschedule(loop.time())

            leaving = loop.create_task(_disconnected(receive))
            leaving.add_done_callback(leave)
            try:
                yield
            finally:
                over = True
                leaving.cancel()
    except TimeoutError:
        if gone:
            raise ClientDisconnect from None
        raise DeadlineError from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
