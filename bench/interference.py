"""How much a fine-tune slows predictions down: the same half load with and without one, in one run.

    python -m bench.interference [--seconds 30] [--rounds 3]

Starts the service as `make serve` does, with a copy of the default model, and prints the p99 of `POST /predict` before
and while a fine-tune runs, in turns, and the ratio of their medians. Where it may, as root, the load program takes a
processor whenever it wants one: it stands for clients on other machines, which wait for no fine-tune.
"""

import argparse
import io
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import httpx

from bench import overload, pictures
from bench.server import Server, service

_PEAK_SECONDS = 5
_PICTURES = 180  # of each of two classes: a fine-tune of some minutes
_MODEL = "cifar10"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the default model")
    parser.add_argument("--seconds", type=int, default=30, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="loads with, and as many without, a fine-tune")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(asked.models / _MODEL, folder / "models" / _MODEL)
        with service(folder / "models", folder / "data", _MODEL, "auto", folder / "service.log") as server:
            _measure(server, asked.seconds, asked.rounds)


def _measure(server: Server, seconds: int, rounds: int) -> None:
    _come_first()
    form = pictures.form(pictures.small())
    url = f"{server.url}/predict"
    # Far above what it can do: what it answers then is its peak.
    peak = max(overload.run(url, *form, 3000, _PEAK_SECONDS).rate for _ in range(2))
    _say(f"peak {peak:.0f} requests/s; half of it is sent, for {seconds} s at a time")
    found: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        for how, kept in found.items():
            job = _start(server.url) if how == "with" else None
            outcome = overload.run(url, *form, peak / 2, seconds)
            kept.append(outcome.p99)
            _say(f"{how:>8} a fine-tune: {outcome.rate:.0f} answers/s, p99 {outcome.p99:.1f} ms")
            if job:
                _stop(server.url, job)
    without, with_ = (statistics.median(found[how]) for how in ("without", "with"))
    _say(f"p99 with a fine-tune is {with_ / without:.2f} times that without ({with_:.1f} and {without:.1f} ms)")


def _come_first() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, PermissionError):  # not Linux, or not root
        _say("not permitted: the load program waits for processors too, which counts as the service's time")


def _start(url: str) -> str:
    """Start a fine-tune, and return its id when it trains."""
    answer = httpx.post(f"{url}/finetune", files={"dataset": ("two.tar", _archive())}, data={"name": "two"}, timeout=60)
    answer.raise_for_status()
    job = str(answer.json()["id"])
    while True:
        found = httpx.get(f"{url}/finetune/{job}").json()
        if found["status"] not in {"queued", "running"}:
            raise RuntimeError(f"The fine-tune ended before it was needed: {found}")
        if found["progress"]["epoch"]:
            return job
        time.sleep(0.2)


def _stop(url: str, job: str) -> None:
    answer = httpx.delete(f"{url}/finetune/{job}")
    if answer.status_code == httpx.codes.CONFLICT:
        raise RuntimeError("The fine-tune ended before the load did. Give --seconds less.")
    while httpx.get(f"{url}/finetune/{job}").json()["status"] == "running":
        time.sleep(0.2)


def _archive() -> bytes:
    """A tar of two classes of drawn photos, fine-grained ones and coarse ones."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for label, grain in (("coarse", 60), ("fine", 0)):
            for number in range(_PICTURES):
                data = io.BytesIO()
                pictures.draw(150, 150, number, grain).save(data, "JPEG", quality=88)
                member = tarfile.TarInfo(f"{label}/{number}.jpg")
                member.size = data.tell()
                data.seek(0)
                archive.addfile(member, data)
    return packed.getvalue()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
