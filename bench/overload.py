"""Open load: requests come at a fixed mean rate, whether or not the server keeps up, as users' requests do."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import uvloop

from bench import client
from bench.client import Connection

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


class _Client:
    def __init__(self, url: str, body: bytes, content_type: str) -> None:
        self._url = url
        self._request = client.post(urlsplit(url).path, body, content_type)
        self._idle: list[Connection] = []

    async def post(self) -> tuple[int, bool, float]:
        """Status, whether there was a Retry-After, and milliseconds."""
        started = time.perf_counter()
        connection = self._take() or await client.connect(self._url)
        answer = await connection.send(self._request)
        self._idle.append(connection)
        return answer.status, b"retry-after:" in answer.head, 1000 * (time.perf_counter() - started)

    def _take(self) -> Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).open:
                return connection
        return None


def run(url: str, body: bytes, content_type: str, rate: float, seconds: float) -> Outcome:
    """Post a body `rate` times a second on average, at random times, for some seconds."""

    async def load() -> tuple[list[tuple[int, bool, float]], float]:
        sender = _Client(url, body, content_type)
        rng = random.Random(0)  # noqa: S311 (times of requests, no secret)
        requests: list[asyncio.Task[tuple[int, bool, float]]] = []
        begun = due = time.perf_counter()
        while due < begun + seconds:
            requests.append(asyncio.create_task(sender.post()))
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        answers = await asyncio.gather(*requests)
        await asyncio.sleep(_RESPITE_SECONDS)
        return answers, (await sender.post())[2]

    answers, after = uvloop.run(load())
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
