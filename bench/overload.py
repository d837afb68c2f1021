"""Open load: many users, who together send requests at a fixed mean rate whether or not the server keeps up."""

import time

import httpx

from bench import wrk
from bench.wrk import Outcome

# Twice as many as may be in work; wrk looks through all that think whenever something happens.
_USERS = 256
_CALIBRATIONS = 3
_CALIBRATION_SECONDS = 3
_RESPITE_SECONDS = 1


def run(url: str, body: bytes, content_type: str, rate: float, seconds: float) -> Outcome:
    """Post a body `rate` times a second on average, at random times, for some seconds.

    Each user thinks for a random time between an answer and the next request. How long, follows from the rate at which
    requests come in short loads before.
    """
    thinks = 1000 * _USERS / rate
    for _ in range(_CALIBRATIONS):
        found = wrk.load(url, body, content_type, _USERS, _CALIBRATION_SECONDS, thinks)
        thinks *= (found.rate + found.refused) / rate
    return wrk.load(url, body, content_type, _USERS, seconds, thinks)


def recovery(url: str, body: bytes, content_type: str) -> float:
    """Milliseconds that one request takes, a second after a load."""
    with httpx.Client() as client:
        time.sleep(_RESPITE_SECONDS)
        started = time.perf_counter()
        client.post(url, content=body, headers={"Content-Type": content_type}).raise_for_status()
        return 1000 * (time.perf_counter() - started)
