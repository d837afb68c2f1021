"""`python -m bench`: the figures of this machine, as ratios of measurements in one run."""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from app.serving.engine import Engine
from app.serving.engines import Engines, Opened
from app.serving.turns import HALVES
from bench import models, overload, pictures, wrk
from bench.server import Server, serve, service
from training import artifact, machine

_WARM_UP_SECONDS = 2
_PEAK_CONNECTIONS = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where models and logs are kept")
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument("--engine", default="auto", help="APP_ENGINE of the service")
    parser.add_argument("--recipe", action="append", help="resnet18 or resnet20; both unless given")
    parser.add_argument("--skip-plain", action="store_true", help="without the plain FastAPI server")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("The load comes from wrk. Install it (Debian and Ubuntu: apt install wrk) and run again.")
    options.folder.mkdir(parents=True, exist_ok=True)
    _say(f"Machine: {machine.describe()}")
    for recipe in options.recipe or ["resnet18", "resnet20"]:
        Bench(options, recipe).run()


class Bench:
    """All measurements with one architecture."""

    def __init__(self, options: argparse.Namespace, recipe: str) -> None:
        self._options = options
        self._recipe = recipe
        self._folder: Path = options.folder
        self._version = models.make(options.folder, recipe)
        with self._ours():
            pass  # the engine is chosen once; from now on the choice is remembered
        self._opened = self._engine()

    def run(self) -> None:
        """Print one line for each measurement."""
        chosen = f"{self._opened.kind}, batches of {self._opened.curve.batch}"
        _say(f"\n{self._recipe}: engine alone {self._ceiling():.0f} pictures/s ({chosen})")
        with self._ours() as server:
            _say(f"service: ready after {server.start_seconds:.1f} s, idle {server.busy_cores(5):.3f} cores")
            self._loads(server)
            self._overload(server)
        if not self._options.skip_plain:
            with self._plain() as server:
                self._load(server, "plain FastAPI, small PNG", *pictures.form(pictures.small()), 1)
                self._load(server, "plain FastAPI, small PNG", *pictures.form(pictures.small()), 64)

    def _loads(self, server: Server) -> None:
        form = pictures.form(pictures.small())
        for connections in (1, 16, _PEAK_CONNECTIONS):
            self._load(server, "small PNG", *form, connections)
        self._load(server, "small PNG, raw body", pictures.small(), "image/png", _PEAK_CONNECTIONS)
        batch = pictures.form(*map(pictures.small, range(32)))
        self._load(server, "32 PNG a request", *batch, 2, pictures=32)
        if self._recipe == "resnet18":
            for connections in (1, 16, _PEAK_CONNECTIONS):
                self._load(server, "12-megapixel JPEG", *pictures.form(pictures.photo()), connections)

    def _load(
        self, server: Server, what: str, body: bytes, content_type: str, connections: int, pictures: int = 1
    ) -> None:
        """Pictures a second under a closed load: each connection sends its next request when it has its answer.

        The share is of what the engine reaches alone just before and just after.
        """
        before = self._ceiling()
        url = f"{server.url}/predict"
        wrk.load(url, body, content_type, connections, _WARM_UP_SECONDS)
        found = wrk.load(url, body, content_type, connections, self._options.seconds)
        rate = found.rate * pictures
        ceiling = (before + self._ceiling()) / 2
        _say(
            f"  {what:<26} c={connections:<3} {rate:8.1f} pictures/s ({rate / ceiling:4.0%} of the engine)  "
            f"p50 {found.p50:7.1f} ms  p99 {found.p99:7.1f} ms  errors {found.errors}  "
            f"memory {server.memory_mb():5.0f} MB"
        )

    def _overload(self, server: Server) -> None:
        """The open load beside the closed one just before and just after."""
        form, url = pictures.form(pictures.small()), f"{server.url}/predict"
        peak = wrk.load(url, *form, _PEAK_CONNECTIONS, self._options.seconds)
        for share in (1.0, 1.5):
            found = overload.run(url, *form, share * peak.rate, self._options.seconds)
            recovery = overload.recovery(url, *form)
            before, peak = peak, wrk.load(url, *form, _PEAK_CONNECTIONS, self._options.seconds)
            rate, p99 = (before.rate + peak.rate) / 2, (before.p99 + peak.p99) / 2
            _say(
                f"  open load at {share:.0%} of the peak: {found.rate + found.refused:.0f}/s came, {found.rate:.0f}/s "
                f"answered ({found.rate / rate:.0%} of the peak), {found.refused:.0f}/s refused with Retry-After, "
                f"{found.errors} other answers, p99 {found.p99:.0f} ms ({found.p99 / p99:.1f} times that of the peak); "
                f"a request one second later {recovery:.1f} ms"
            )

    def _engine(self) -> Opened:
        shares = machine.divide()
        engines = Engines(self._options.engine, "cpu", shares.engine, 64, self._folder / "data" / "engines")
        return engines.open(self._version, artifact.read_manifest(self._version))

    def _ceiling(self) -> float:
        """Pictures a second of the engine alone in its best batch, now: a machine that others use too changes."""
        rate = self._rate(self._opened.engine, 1)
        return max(rate, self._rate(self._opened.halves, HALVES)) if self._opened.halves else rate

    def _rate(self, engine: Engine, threads: int) -> float:
        size = artifact.read_manifest(self._version).input_size
        batch = np.zeros((self._opened.curve.batch, 3, size, size), np.uint8)
        end = time.perf_counter() + self._options.seconds / 4

        def compute(_: int) -> int:
            done = 0
            while time.perf_counter() < end:
                engine.predict(batch)
                done += len(batch)
            return done

        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as executor:
            done = sum(executor.map(compute, range(threads)))
        return done / (time.perf_counter() - started)

    @contextmanager
    def _ours(self) -> Iterator[Server]:
        models, data = self._version.parent.parent, self._folder / "data"
        with service(models, data, self._recipe, self._options.engine, self._folder / "service.log") as server:
            body, content_type = pictures.form(pictures.small())
            answer = httpx.post(f"{server.url}/predict", content=body, headers={"Content-Type": content_type})
            answer.raise_for_status()
            yield server

    @contextmanager
    def _plain(self) -> Iterator[Server]:
        side = str(artifact.read_manifest(self._version).input_size)
        environment = {"BENCH_SCRIPT": str(self._version / artifact.SCRIPT), "BENCH_SIDE": side}
        command = ["env", "BENCH_PORT={port}", sys.executable, "-m", "bench.plain"]
        with serve(command, environment, "/readyz", self._folder / "plain.log") as server:
            yield server


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
