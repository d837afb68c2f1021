"""Open load: requests come at a fixed mean rate, whether or not the server keeps up, as users' requests do."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

_RESPITE_SECONDS = 1


@dataclass(frozen=True)
class Outcome:
    """What came of an open load.

    `goodput` and `refused` are answers a second with 200, and with 429 or 503 and `Retry-After`; `others` counts all
    other answers. `p99` is of the accepted requests, in milliseconds, and `after` how long one request took a second
    after the load.
    """

    offered: float
    goodput: float
    refused: float
    others: int
    p99: float
    after: float


class _Connection(asyncio.Protocol):
    """One request at a time; `answer` holds what came back."""

    def __init__(self) -> None:
        self.buffer = b""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (of create_connection)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self.buffer = b""
            self.answer.set_result(head)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(b"HTTP/1.1 000 closed")

    async def send(self, request: bytes) -> bytes:
        """Head of the answer."""
        assert self.transport  # noqa: S101 (it is connected)
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


class _Client:
    def __init__(self, url: str, body: bytes, content_type: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._request = (
            f"POST {address.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self._idle: list[_Connection] = []

    async def post(self) -> tuple[int, bool, float]:
        """Status, whether there was a Retry-After, and milliseconds."""
        started = time.perf_counter()
        connection = self._reuse()
        if connection is None:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        head = await connection.send(self._request)
        status = int(head[9:12])
        if status:
            self._idle.append(connection)
        return status, b"retry-after:" in head.lower(), 1000 * (time.perf_counter() - started)

    def _reuse(self) -> _Connection | None:
        """A connection that the server has not closed in the meantime."""
        while self._idle:
            connection = self._idle.pop()
            if connection.transport and not connection.transport.is_closing():
                return connection
        return None


def run(url: str, body: bytes, content_type: str, rate: float, seconds: float) -> Outcome:
    """Post a body `rate` times a second on average, at random times, for some seconds."""

    async def load() -> tuple[list[tuple[int, bool, float]], float]:
        client = _Client(url, body, content_type)
        rng = random.Random(0)  # noqa: S311 (times of requests, no secret)
        requests: list[asyncio.Task[tuple[int, bool, float]]] = []
        begun = due = time.perf_counter()
        while due < begun + seconds:
            requests.append(asyncio.create_task(client.post()))
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        answers = await asyncio.gather(*requests)
        await asyncio.sleep(_RESPITE_SECONDS)
        return answers, (await client.post())[2]

    answers, after = asyncio.run(load())
    statuses = Counter((status, patient) for status, patient, _ in answers)
    refused = statuses[429, True] + statuses[503, True]
    accepted = [taken for status, _, taken in answers if status == 200]
    return Outcome(
        offered=len(answers) / seconds,
        goodput=len(accepted) / seconds,
        refused=refused / seconds,
        others=len(answers) - len(accepted) - refused,
        p99=float(np.percentile(accepted, 99)),
        after=after,
    )
