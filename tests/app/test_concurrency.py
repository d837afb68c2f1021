"""Many requests at once: every answer belongs to its own picture."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.serving.engine import Probabilities
from tests.app.artifacts import CLASSES
from tests.app.pictures import direct, draw, png
from tests.app.process import Server
from tests.encoding import encode

REQUESTS = 2000
CLIENTS = 20
CONNECTIONS = 400
TIMEOUT = 240  # seconds; only ends a test that hangs
TOLERANCE = 1e-4
FORMATS = ("PNG", "JPEG", "WebP", "BMP")
GOOD = tuple(encode(draw(seed), FORMATS[seed % 4]) for seed in range(128))
BAD = {b"no picture": 415, b"": 415, png(1000)[:-40]: 422, encode(draw(1001), "JPEG")[:-60]: 422}


@dataclass(frozen=True)
class Case:
    """A request and what it has to get: for each picture its number among the good ones, or a status."""

    version: int
    expected: list[tuple[int | None, int]]
    status: int
    call: dict[str, Any] = field(repr=False)


def make_case(rng: random.Random) -> Case:
    version = rng.choice((1, 1, 1, 2))
    parts: list[tuple[bytes, int | None, int]] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if rng.random() < 0.2:
            data, status = rng.choice(list(BAD.items()))
            parts.append((data, None, status))
        else:
            number = rng.randrange(len(GOOD))
            parts.append((GOOD[number], number, 200))
    params = {"version": version, "top_k": len(CLASSES)}
    call: dict[str, Any] = {"params": params}
    if len(parts) == 1 and parts[0][0] and rng.random() < 0.5:
        call |= {"content": parts[0][0], "headers": {"Content-Type": "image/x"}}
    else:
        call |= {"files": [("file", (f"{number}", data)) for data, number, _ in parts]}
    if rng.random() < 0.05:
        params["version"] = 77
        return Case(version, [], 404, call)
    status = parts[0][2] if len(parts) == 1 else 200
    return Case(version, [(number, state) for _, number, state in parts], status, call)


def check(case: Case, answer: httpx.Response, rows: dict[int, Probabilities]) -> None:
    body = answer.json()
    assert answer.status_code == case.status, (case, body)
    if case.status != 200:
        assert body["status"] == case.status
        return
    assert body["version"] == case.version
    for entry, (number, status) in zip(body["predictions"], case.expected, strict=True):
        if number is None:
            assert entry["error"]["status"] == status
            continue
        found = {name["label"]: name["probability"] for name in entry["top"]}
        row = rows[case.version][number]
        assert [found[label] for label in CLASSES] == pytest.approx(row.tolist(), abs=TOLERANCE)


def test_every_answer_belongs_to_its_picture(server: Server, models: Path) -> None:
    rows = {version: direct(models / f"cifar10/{version}", *GOOD) for version in (1, 2)}
    together = np.concatenate([rows[1], rows[2]])
    distances = np.abs(together[:, None] - together[None]).max(2) + np.eye(len(together))
    assert distances.min() > 3 * TOLERANCE, "the pictures are too alike to tell a swapped answer"
    rng = random.Random(0)
    cases = [make_case(rng) for _ in range(REQUESTS)]

    # Several clients with few connections each: one client's pool takes quadratic time over many requests.
    async def send(share: list[Case]) -> list[tuple[Case, httpx.Response]]:
        limits = httpx.Limits(max_connections=CONNECTIONS // CLIENTS)
        async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=limits, verify=False) as client:  # noqa: S501 (no TLS here)
            answers = await asyncio.gather(*(client.post("/predict", **case.call) for case in share))
        return list(zip(share, answers, strict=True))

    async def send_all() -> list[list[tuple[Case, httpx.Response]]]:
        return await asyncio.gather(*(send(cases[start::CLIENTS]) for start in range(CLIENTS)))

    found = [pair for pairs in asyncio.run(send_all()) for pair in pairs]
    assert len(found) == REQUESTS
    for case, answer in found:
        check(case, answer, rows)
