"""Load on a server while something else happens to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from app.serving.engine import Probabilities
from tests.app.artifacts import CLASSES
from tests.app.pictures import direct, png
from tests.app.process import Server

CLIENTS = 8
PICTURES = tuple(png(seed) for seed in range(16))
TOLERANCE = 1e-4
LONG = 60  # seconds; only ends a test that hangs


@dataclass
class Load:
    """Requests that are sent without a pause, and what came back; the versions lie in `folder`."""

    folder: Path
    answers: list[tuple[int, httpx.Response]] = field(default_factory=list)

    def check(self) -> set[int]:
        """Compare every answer with what its version's file says of the picture, and give the versions."""
        rows: dict[int, Probabilities] = {}
        assert self.answers
        for number, answer in self.answers:
            assert answer.status_code == 200, answer.text
            body = answer.json()
            version = body["version"]
            if version not in rows:
                rows[version] = direct(self.folder / str(version), *PICTURES)
            found = {entry["label"]: entry["probability"] for entry in body["predictions"][0]["top"]}
            assert np.allclose([found[label] for label in CLASSES], rows[version][number], atol=TOLERANCE)
        return set(rows)


@asynccontextmanager
async def load(server: Server, folder: Path) -> AsyncIterator[Load]:
    """Send requests from several clients until the block ends; a request that is under way then is waited for."""
    sent, stop = Load(folder), asyncio.Event()

    async def send(client: httpx.AsyncClient, number: int) -> None:
        while not stop.is_set():
            answer = await client.post("/predict?top_k=10", files={"file": PICTURES[number]})
            sent.answers.append((number, answer))
            number = (number + 1) % len(PICTURES)

    async with httpx.AsyncClient(base_url=server.url, timeout=LONG) as client, asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(send(client, number))
        try:
            yield sent
        finally:
            stop.set()
