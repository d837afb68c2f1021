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
from bench.client import Answer, Connection

_RESPITE_SECONDS = 1
_TICK_SECONDS = 0.001


@dataclass(frozen=True)
class Outcome:
    """What came of an open load.

    `goodput` is answers a second with 200 that came while the load lasted, `refused` those with 429 or 503 and
    `Retry-After`; `others` counts all other answers. `p99` is of the accepted requests, in milliseconds, and `after`
    how long one request took a second after the load.
    """

    offered: float
    goodput: float
    refused: float
    others: int
    p99: float
    after: float


class _Load:
    """Sends one request over and over.

    `answers` has status, whether there was a Retry-After, and milliseconds; the first `in_time` of them came while the
    load lasted.
    """

    def __init__(self, url: str, body: bytes, content_type: str) -> None:
        self.answers: list[tuple[int, bool, float]] = []
        self.in_time = 0
        self._url = url
        self._request = client.post(urlsplit(url).path, body, content_type)
        self._idle: list[Connection] = []

    async def send(self) -> asyncio.Future[Answer]:
        """Send it now, on a connection that is idle or a new one."""
        connection = self._take() or await client.connect(self._url)
        started = time.perf_counter()
        answer = connection.send(self._request)

        def note(done: asyncio.Future[Answer]) -> None:
            came = done.result()
            self.answers.append((came.status, b"retry-after:" in came.head, 1000 * (time.perf_counter() - started)))
            self._idle.append(connection)

        answer.add_done_callback(note)
        return answer

    async def run(self, rate: float, seconds: float) -> None:
        """Send it at random times, and wait for all answers."""
        rng = random.Random(0)  # noqa: S311 (times of requests, no secret)
        waiting: set[asyncio.Future[Answer]] = set()
        begun = due = time.perf_counter()
        while due < begun + seconds:
            while due <= time.perf_counter():
                answer = await self.send()
                waiting.add(answer)
                answer.add_done_callback(waiting.discard)
                due += rng.expovariate(rate)
            await asyncio.sleep(max(due - time.perf_counter(), _TICK_SECONDS))
        self.in_time = len(self.answers)
        await asyncio.gather(*waiting)

    def _take(self) -> Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).open:
                return connection
        return None


def run(url: str, body: bytes, content_type: str, rate: float, seconds: float) -> Outcome:
    """Post a body `rate` times a second on average, at random times, for some seconds."""

    async def load() -> tuple[list[tuple[int, bool, float]], int, float]:
        sender = _Load(url, body, content_type)
        await sender.run(rate, seconds)
        answers = list(sender.answers)
        await asyncio.sleep(_RESPITE_SECONDS)
        await (await sender.send())
        return answers, sender.in_time, sender.answers[-1][2]

    answers, in_time, after = uvloop.run(load())
    statuses = Counter((status, patient) for status, patient, _ in answers)
    refused = statuses[429, True] + statuses[503, True]
    accepted = [taken for status, _, taken in answers if status == 200]
    return Outcome(
        offered=len(answers) / seconds,
        goodput=sum(status == 200 for status, _, _ in answers[:in_time]) / seconds,
        refused=refused / seconds,
        others=len(answers) - len(accepted) - refused,
        p99=float(np.percentile(accepted, 99)),
        after=after,
    )
