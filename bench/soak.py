"""Soak test of serving: many requests, good and bad, clients that hang up, promotions; every answer is checked.

    python -m bench.soak                                    # a million requests
    python -m bench.soak --requests 100000 --json soak.json

Ends with 1 if anything came that should not: an answer that is not what the version which it names says of the picture,
another status than the request deserves, no answer, an error in the service's log, or memory that grew.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import orjson
import uvloop

from bench import client, models, reference
from bench.cases import Case, Deck
from bench.client import Answer, Connection, connect
from bench.reference import Reference
from bench.server import Server, service
from training import artifact, machine
from training.progress import clock

MAX_GROWTH_MB = 20

_VERSIONS = 3  # so that every promotion loads one and lets go of another
_HANG_UP = 0.02  # of the requests: their clients leave in the middle of sending, or before or while the answer comes
_PATIENCE_SECONDS = 0.04  # of such a client at most, about twice as long as an answer takes
_LONGEST_SECONDS = 60  # that an answer may take before it counts as none
_ERROR = re.compile(r"^\S+ \S+ (?:ERROR|CRITICAL) |^Exception ", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """What is sent and what happens meanwhile.

    Args:
        requests: how many.
        promotions: how many, evenly spread.
        seconds: end the test early.
        pictures: different ones, at most 400.
        connections: so few that the service has no reason to refuse anything.
        memory_every: requests between two times that memory is measured.
    """

    requests: int
    promotions: int
    seconds: float = float("inf")
    pictures: int = 256
    connections: int = 32
    memory_every: int = 50_000


@dataclass
class Report:
    """What was sent and what came of it.

    `wrong` answers are not what the version which they name says of the picture; `swapped` ones among them are what
    some version says of some other picture; `stale` ones come from a version that was not in production. `memory` is
    that of all processes of the service, in MB, by the number of requests sent until then.
    """

    requests: int = 0
    seconds: float = 0.0
    hung_up: int = 0
    promotions: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    swapped: int = 0
    stale: int = 0
    log_errors: int = 0
    memory: dict[int, float] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """MB between the first time that memory was measured and the last."""
        measured = list(self.memory.values())
        return measured[-1] - measured[0]

    def broken(self, plan: Plan) -> list[str]:
        """What is not as it should be."""
        bounds = {
            f"{plan.requests - self.requests} requests were not sent in time": self.requests < plan.requests,
            f"{self.promotions} of {plan.promotions} promotions": self.promotions < plan.promotions,
            f"{self.wrong} wrong answers, {self.swapped} of them swapped": self.wrong,
            f"{self.stale} answers of versions that were not in production": self.stale,
            f"unexpected answers: {dict(self.unexpected)}": self.unexpected,
            f"{self.log_errors} errors in the log": self.log_errors,
            f"memory grew by {self.growth:.1f} MB": self.growth > MAX_GROWTH_MB,
        }
        return [reason for reason, found in bounds.items() if found]

    def json(self, plan: Plan) -> str:
        """All of it as a JSON object."""
        return json.dumps(vars(self) | {"growth": self.growth, "broken": self.broken(plan)}, indent=1)


def main() -> None:
    """Run the test that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="ends the test early, as a failure")
    parser.add_argument("--recipe", default="resnet20", help="of the model")
    parser.add_argument("--promotions", type=int, default=20)
    parser.add_argument("--engine", default="auto", help="APP_ENGINE of the service")
    parser.add_argument("--folder", type=Path, default=Path("build/soak"), help="where models and logs are kept")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    models.make(options.folder, options.recipe, _VERSIONS)
    plan = Plan(options.requests, options.promotions, options.seconds)
    report = run(options.folder, options.recipe, options.engine, plan)
    broken = report.broken(plan)
    sys.stdout.write(_table(report, broken))
    if options.json:
        options.json.write_text(report.json(plan))
    sys.exit(bool(broken))


def run(folder: Path, model: str, engine: str, plan: Plan) -> Report:
    """Start the service on the models in `folder/models`, send what the plan says, and check what comes."""
    places, data, log = folder / "models", folder / "data", folder / "service.log"
    production = artifact.read_aliases(places, model).production
    if production is None:
        raise RuntimeError(f"No version of {model} is in production. Remove {folder} and run again.")
    known = reference.make(places, model, engine, data, plan.pictures)
    log.unlink(missing_ok=True)
    with service(places, data, model, engine, log) as server:
        report = uvloop.run(Soak(server, model, production, known, plan).run())
    report.log_errors = len(_ERROR.findall(log.read_text()))
    return report


class Soak:
    """One run against a server.

    Args:
        server: the service, which nobody else sends anything.
        model: the default one.
        production: its version in production.
        known: what its versions answer.
        plan: what to do.
    """

    def __init__(self, server: Server, model: str, production: int, known: Reference, plan: Plan) -> None:
        self._server = server
        self._model = model
        self._known = known
        self._plan = plan
        self._deck = Deck(known.pictures, list(known.answers))
        self._production = frozenset({production})  # one version, or two while a promotion is under way
        self._report = Report()
        self._ends = time.monotonic() + plan.seconds
        self._event = 0  # number of requests after which something happens
        self._due = asyncio.Event()

    async def run(self) -> Report:
        """Send everything, and measure memory once more at the end."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._conduct())
            for seed in range(self._plan.connections):
                tasks.create_task(self._send(random.Random(seed)))  # noqa: S311 (requests, no secret)
        self._report.seconds = time.monotonic() - started
        await self._measure()
        return self._report

    async def _conduct(self) -> None:
        """Promote and measure memory between the requests."""
        plan = self._plan
        spaced = [round((number + 0.5) * plan.requests / plan.promotions) for number in range(plan.promotions)]
        events = [(after, self._promote) for after in spaced]
        events += [(after, self._measure) for after in range(plan.memory_every, plan.requests, plan.memory_every)]
        for self._event, act in sorted(events, key=itemgetter(0)):
            self._due.clear()
            if self._report.requests < self._event and not self._late():
                await self._due.wait()
            if self._report.requests < self._event:
                return
            await act()

    def _late(self) -> bool:
        return time.monotonic() > self._ends

    def _next(self) -> bool:
        """Count a request that is about to be sent; False if there is none left."""
        if self._report.requests == self._plan.requests or self._late():
            self._due.set()
            return False
        self._report.requests += 1
        if self._report.requests == self._event:
            self._due.set()
        return True

    async def _send(self, rng: random.Random) -> None:
        connection = await connect(self._server.url)
        while self._next():
            case = self._deck.draw(rng)
            if rng.random() < _HANG_UP:
                await self._hang_up(connection, case, rng)
            else:
                before = self._production
                answer = await _ask(connection, case.message)
                self._check(case, answer, before | self._production)
            if not connection.open:
                connection = await connect(self._server.url)
        connection.abort()

    async def _hang_up(self, connection: Connection, case: Case, rng: random.Random) -> None:
        """Send a request, or half of it, and leave at some moment, whatever has come until then."""
        self._report.hung_up += 1
        connection.write(case.message[: len(case.message) // rng.choice((1, 2))])
        await asyncio.sleep(rng.random() * _PATIENCE_SECONDS)
        connection.abort()

    def _check(self, case: Case, answer: Answer, production: frozenset[int]) -> None:
        report = self._report
        report.statuses[answer.status] += 1
        if answer.status != case.status:
            report.unexpected[f"{answer.status or 'no answer'} in place of {case.status}"] += 1
            return
        if answer.status != 200:
            return
        body = orjson.loads(answer.body)
        version, entries = body["version"], body["predictions"]
        report.stale += version not in ({case.version} if case.version else production)
        report.wrong += len(entries) != len(case.entries)
        for entry, number in zip(entries, case.entries, strict=False):
            if "error" in entry:
                report.wrong += entry["error"]["status"] != number
            elif number >= self._plan.pictures or not self._known.agrees(version, number, entry["top"]):
                report.wrong += 1
                report.swapped += self._known.known(entry["top"])

    async def _measure(self) -> None:
        self._report.memory[self._report.requests] = await asyncio.to_thread(self._server.memory_mb)

    async def _promote(self) -> None:
        versions = sorted(self._known.answers)
        (before,) = self._production
        version = versions[(versions.index(before) + 1) % len(versions)]
        request = client.post(f"/models/{self._model}/promote", orjson.dumps({"version": version}), "application/json")
        self._production |= {version}
        connection = await connect(self._server.url)
        answer = await _ask(connection, request)
        connection.abort()
        if answer.status == 200:
            self._production = frozenset({version})
            self._report.promotions += 1
        else:
            self._production = frozenset({before})
            self._report.unexpected[f"{answer.status or 'no answer'} to a promotion"] += 1


async def _ask(connection: Connection, message: bytes) -> Answer:
    try:
        async with asyncio.timeout(_LONGEST_SECONDS):
            return await connection.send(message)
    except TimeoutError:
        connection.abort()
        return Answer(0, b"", b"")


def _table(report: Report, broken: Sequence[str]) -> str:
    shown = {
        "machine": machine.describe(),
        "requests": f"{report.requests:,} in {clock(report.seconds)}, {report.requests / report.seconds:,.0f} a second",
        "answers": ", ".join(f"{status}: {count:,}" for status, count in sorted(report.statuses.items())),
        "hung up": f"{report.hung_up:,}",
        "promotions": str(report.promotions),
        "wrong": f"{report.wrong}, {report.swapped} of them swapped, and {report.stale} of the wrong version",
        "unexpected": str(report.unexpected.total()),
        "memory": ", ".join(f"{megabytes:.1f} MB after {sent:,}" for sent, megabytes in report.memory.items()),
        "growth": f"{report.growth:.1f} MB",
        "result": "; ".join(broken) or "all as it should be",
    }
    return "".join(f"{name:<12}{value}\n" for name, value in shown.items())


if __name__ == "__main__":
    main()
