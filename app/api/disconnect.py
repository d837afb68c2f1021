"""Clients that hang up, and deadlines that pass: what was being done for them is given up."""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Scope

from app.errors import DeadlineError

_SCOPE = "refit.client"


class Client:
    """Whether the client of a connection is still there, and whom to tell when it leaves.

    The protocol's own message, `http.disconnect`, would take a task that waits for it beside every request.

    Attributes:
        gone: whether it has hung up.
        watchers: called when it does.
    """

    def __init__(self) -> None:
        self.gone = False
        self.watchers: set[Callable[[], None]] = set()

    def attach(self, scope: Scope) -> None:
        """Become the client of a request."""
        scope[_SCOPE] = self

    def leave(self) -> None:
        """Take note that it has hung up."""
        self.gone = True
        for tell in tuple(self.watchers):
            tell()


def client_of(scope: Scope) -> Client:
    """The client of a request; of another server than ours, one that never leaves."""
    found: Client = scope.get(_SCOPE) or Client()
    return found


class Wanted:
    """Cancels what is done inside (`async with Wanted(client): ...`) as soon as nobody wants it any more.

    Leaving the block raises ClientDisconnect if the client has hung up, DeadlineError if the deadline has passed.

    Args:
        client: of the request.
        deadline: time of the event loop's clock.
    """

    def __init__(self, client: Client, deadline: float = math.inf) -> None:
        self._client = client
        self._scope = asyncio.timeout_at(None if deadline == math.inf else deadline)
        self._gone = False

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        if self._client.gone:
            self._leave()
        else:
            self._client.watchers.add(self._leave)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.watchers.discard(self._leave)
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            raise (ClientDisconnect if self._gone else DeadlineError)() from None

    def _leave(self) -> None:
        if not self._scope.expired():  # the deadline may pass in the same moment
            self._gone = True
            self._scope.reschedule(asyncio.get_running_loop().time())
