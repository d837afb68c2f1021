"""Fine-tune jobs over HTTP, the way a client works with them."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from PIL import ImageOps

from tests.encoding import encode
from tests.training.shapes import draw

Job = dict[str, Any]

# Trained from scratch, because that is the same path through queue and worker and needs no base.
TINY: dict[str, Any] = {"recipe": "resnet20", "batch_size": "16", "learning_rate": "0.05"}
END_SECONDS = 240.0


def shapes(count: int = 30, first: int = 0, extra: Mapping[str, bytes] | None = None) -> bytes:
    """A zip of `count` discs on dark ground and as many crosses on light ground, and of other files by their path."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for kind in ("disc", "cross"):
            for number in range(first, first + count):
                picture = draw(kind, number)
                archive.writestr(
                    f"{kind}/{number}.png", encode(ImageOps.invert(picture) if kind == "cross" else picture)
                )
        for path, data in (extra or {}).items():
            archive.writestr(path, data)
    return packed.getvalue()


def submit(
    client: httpx.Client, archive: bytes, *, filename: str = "shapes.zip", key: str | None = None, **fields: Any
) -> httpx.Response:
    """Send a dataset; fields are those of the form."""
    return client.post(
        "/finetune",
        files={"dataset": (filename, archive)},
        data={name: str(value) for name, value in fields.items()},
        headers={"Idempotency-Key": key} if key else {},
    )


def accepted(answer: httpx.Response) -> str:
    """The id of a job that was accepted."""
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/finetune/{answer.json()['id']}"
    return str(answer.json()["id"])


def follow(client: httpx.Client, job: str) -> Iterator[Job]:
    """The job whenever it has changed, from the stream of events, until it ends."""
    with client.stream("GET", f"/finetune/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def wait(client: httpx.Client, job: str, until: Callable[[Job], bool], seconds: float = END_SECONDS) -> Job:
    """Ask for the job until it is as wanted, also while the service is away; fail when it ends otherwise."""
    end = time.monotonic() + seconds
    while True:
        try:
            found: Job = client.get(f"/finetune/{job}").json()
        except httpx.TransportError:
            found = {"status": "unknown"}
        if found["status"] != "unknown" and until(found):
            return found
        assert found["status"] in {"queued", "running", "unknown"}, found
        assert time.monotonic() < end, found
        time.sleep(0.1)


def ended(job: Job) -> bool:
    """Whether nothing more happens to a job."""
    return job["status"] in {"succeeded", "failed", "cancelled"}


def trained(epochs: int) -> Callable[[Job], bool]:
    """Whether so many epochs of a job that still runs are behind it."""
    return lambda job: bool(job["status"] == "running" and job["progress"]["epoch"] >= epochs)


def versions(models: Path, name: str) -> list[int]:
    """Versions in a model's folder, finished or not."""
    return sorted(int(path.name) for path in (models / name).iterdir() if path.name.isdecimal())
