"""Load from wrk, which takes a hundredth of what the service takes for the same requests.

It runs on the same machine, so it is scheduled as batch work (sched(7)): it has its share of the processors, but takes
none at the moment in which an answer comes, from whoever computes the next one.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("load.lua")
_TIMEOUT = "60s"


@dataclass(frozen=True)
class Outcome:
    """What came of a load.

    `rate` is answers a second with 200, `refused` those with 429 or 503 and `Retry-After`; `errors` counts all others
    and broken connections. `p50` and `p99` are of the answers with 200, in milliseconds.
    """

    rate: float
    refused: float
    errors: int
    p50: float
    p99: float


def load(
    url: str, body: bytes, content_type: str, connections: int, seconds: float, think: float | None = None
) -> Outcome:
    """Post a body on so many connections, each of which sends its next request when it has its answer.

    Args:
        url: where to.
        body: of each request.
        content_type: of the body.
        connections: that are open.
        seconds: how long, at least one.
        think: milliseconds that each connection waits before each request, on average; none if not given.
    """
    options = f"-t1 -c{connections} -d{round(seconds)}s --timeout {_TIMEOUT} --latency"
    command = ["chrt", "--batch", "0", "wrk", *options.split()]
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        environment = {**os.environ, "BODY": file.name, "CTYPE": content_type}
        if think is not None:
            environment["THINK"] = str(think)
        out = subprocess.run(  # noqa: S603 (our own command)
            [*command, "-s", str(_SCRIPT), url], env=environment, capture_output=True, text=True, check=True
        ).stdout
    return Outcome(**json.loads(next(line for line in out.splitlines() if line.startswith("RESULT"))[7:]))
