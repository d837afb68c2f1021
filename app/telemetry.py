"""Telemetry: what the service measures of itself, for Prometheus (`/metrics`) and for the client (`Server-Timing`).

Labels are names and versions of models that were loaded, statuses, and stages: what a client sends never becomes one.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.responses import Response
from starlette.types import Scope

log = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where several processes share their figures, by prometheus_client's own name

_SCOPE = "refit.prediction"

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_requests = Counter(
    "refit_requests",
    "Answers to POST /predict; model and version are empty where the request ended before they were known. Status 499: "
    "the client hung up first.",
    ["model", "version", "status"],
)
_in_flight = Gauge("refit_requests_in_flight", "POST /predict requests in work.", multiprocess_mode="livesum")
_stages = Histogram(
    "refit_stage_seconds",
    "Time of one picture: queue (until a thread decodes it), decode, batch_wait (until its batch is computed).",
    ["model", "stage"],
    buckets=_SECONDS,
)
_inference = Histogram("refit_inference_seconds", "Time of one batch in the engine.", ["model"], buckets=_SECONDS)
_batches = Histogram("refit_batch_pictures", "Pictures in one batch.", ["model"], buckets=_PICTURES)
_loaded = Gauge(
    "refit_model_loaded",
    "Processes in which a version is loaded, and the engine that runs it.",
    ["model", "version", "engine"],
    multiprocess_mode="livesum",
)


@dataclass(slots=True)
class Timing:
    """Where the time of one picture went, in seconds."""

    queue: float = 0.0
    decode: float = 0.0
    batch_wait: float = 0.0
    inference: float = 0.0


class Prediction:
    """Counts and times one request (`with Prediction(scope) as prediction: ...`).

    Attributes:
        model: who answered, as soon as that is known.
        version: of it.
        timings: one for each picture.
        status: that was sent; 499 if the client had hung up.
    """

    def __init__(self, scope: Scope) -> None:
        scope[_SCOPE] = self
        self.model = ""
        self.version = ""
        self.timings: list[Timing] = []
        self.status = 500  # of a request that ends without an answer

    def begin(self, model: str, version: int, pictures: int) -> list[Timing]:
        """Say who answers how many pictures, and get their timings to fill."""
        self.model, self.version = model, str(version)
        self.timings = [Timing() for _ in range(pictures)]
        return self.timings

    def answered(self, answer: Response) -> None:
        """Put `Server-Timing` on an answer that succeeds."""
        if answer.status_code == 200:
            answer.raw_headers.append((b"server-timing", self._header()))

    def _header(self) -> bytes:
        """The value of `Server-Timing` (W3C, milliseconds): the slowest picture's."""
        slowest = max(self.timings, key=_total) if len(self.timings) > 1 else self.timings[0]
        waited = slowest.queue + slowest.batch_wait
        return b"decode;dur=%.2f, queue;dur=%.2f, inference;dur=%.2f" % (
            1000 * slowest.decode,
            1000 * waited,
            1000 * slowest.inference,
        )

    def __enter__(self) -> "Prediction":
        _in_flight.inc()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        _in_flight.dec()
        _counter(self.model, self.version, self.status).inc()
        if not self.model:
            return
        queue, decode, batch_wait = _observers(self.model)
        for timing in self.timings:
            if timing.decode:  # 0 is a picture that did not come so far
                queue(timing.queue)
                decode(timing.decode)
            if timing.inference:
                batch_wait(timing.batch_wait)


def count_refusal(status: int) -> None:
    """Take note of a request for a prediction that is answered before anything is done for it."""
    _counter("", "", status).inc()


def prediction_of(scope: Scope) -> Prediction:
    """The record of a request, for who handles it to fill."""
    found: Prediction = scope[_SCOPE]
    return found


def batch_observer(model: str) -> Callable[[int, float], None]:
    """A function that takes note of one batch: its pictures, and the seconds that the engine took."""
    pictures, seconds = _batches.labels(model).observe, _inference.labels(model).observe

    def observe(size: int, took: float) -> None:
        pictures(size)
        seconds(took)

    return observe


def note_loaded(model: str, version: int, engine: str, loaded: bool) -> None:
    """Take note of whether this process has a version in memory."""
    _loaded.labels(model, str(version), engine).set(int(loaded))


def keep_folder() -> None:
    """Make the folder of shared figures again if a cleaner of temporary files removed it: no process starts without.

    Where that cannot be, those that start from now on count for themselves.
    """
    folder = os.environ.get(FOLDER)
    if not folder or Path(folder).is_dir():
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        del os.environ[FOLDER]
        log.error("Processes that start now do not share their figures: %s", error)  # noqa: TRY400
    else:
        log.warning("%s was removed with the figures in it. Restart the service for a whole /metrics.", folder)


def exposition() -> bytes:
    """All figures in Prometheus' text format, of all processes that share the port."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return generate_latest(REGISTRY)
    for process in _dead(Path(folder)):
        mark_process_dead(process, folder)  # otherwise what it had in work would stay in work for ever
    together = CollectorRegistry()
    MultiProcessCollector(together, folder)
    return generate_latest(together)


def _total(timing: Timing) -> float:
    return timing.queue + timing.decode + timing.batch_wait + timing.inference


def _dead(folder: Path) -> Iterator[int]:
    """Processes that have left gauges there and are no more."""
    for process in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*.db")}:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            yield process


@cache
def _counter(model: str, version: str, status: int) -> Counter:
    return _requests.labels(model, version, str(status))


@cache
def _observers(model: str) -> tuple[Callable[[float], None], ...]:
    return tuple(_stages.labels(model, stage).observe for stage in ("queue", "decode", "batch_wait"))
