"""Feedback over HTTP: from the answer that is wrong to the version that has learned from it, with real processes."""

import re
import resource
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import uuid7
from tests.app.jobs import END_SECONDS, accepted, ended, wait
from tests.app.pictures import draw, png
from tests.app.process import Server, serve
from tests.encoding import encode
from tests.training import shapes
from training import artifact

ROOT = Path(__file__).resolve().parents[2]
CALLS = [
    ("POST", "/feedback"),
    ("GET", "/feedback"),
    ("GET", "/feedback/queue"),
    ("GET", "/feedback/x/picture"),
    ("DELETE", "/feedback/x"),
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback-data")


@pytest.fixture(scope="module")
def keeping(models: Path, data_dir: Path) -> Iterator[httpx.Client]:
    """A client of a server that keeps what it classifies; no worker runs here."""
    with (
        serve(models, keep_feedback=True, data_dir=data_dir) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def predict(client: httpx.Client, *pictures: bytes, model: str = "cifar10") -> list[dict[str, Any]]:
    files = [("file", (f"{number}.png", data)) for number, data in enumerate(pictures)]
    answer = client.post("/predict", params={"model": model}, files=files)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def say(client: httpx.Client, prediction: str, label: str) -> httpx.Response:
    return client.post("/feedback", json={"id": prediction, "label": label})


def finetune(client: httpx.Client, key: str | None = None, **fields: Any) -> httpx.Response:
    form = {"dataset": "feedback", **fields}
    return client.post(
        "/finetune",
        files={name: (None, str(value)) for name, value in form.items()},
        headers={"Idempotency-Key": key} if key else {},
    )


def problem(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == answer.json()["status"] == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:refit:problem:{kind}"
    return str(answer.json()["detail"])


def until(wanted: Callable[[], object]) -> None:
    end = time.monotonic() + END_SECONDS
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.02)


def file_of(data_dir: Path) -> Path:
    return data_dir / "feedback" / "feedback.sqlite"


def test_it_is_off_unless_switched_on(client: httpx.Client, models: Path) -> None:
    (entry,) = predict(client, png(1))
    assert set(entry) == {"filename", "label", "probability", "top"}
    for method, path in CALLS:
        answer = client.request(method, path, json={"id": "x", "label": "cat"} if method == "POST" else None)
        assert "APP_KEEP_FEEDBACK=true" in problem(answer, 409, "feedback-off")
    assert "APP_KEEP_FEEDBACK=true" in problem(finetune(client, name="cifar10"), 409, "feedback-off")
    assert not file_of(Path(f"{models}-data")).parent.exists()


def test_every_picture_that_is_classified_gets_an_id_of_its_own(keeping: httpx.Client) -> None:
    first, failed, second = predict(keeping, png(1), b"no picture", png(1))
    assert "id" not in failed
    assert first["id"] != second["id"]
    assert abs((uuid7.moment(first["id"]) or 0) - time.time()) < 60
    (raw,) = keeping.post("/predict", content=png(2), headers={"content-type": "image/png"}).json()["predictions"]
    assert keeping.get(f"/feedback/{raw['id']}/picture").content == png(2)
    assert keeping.post("/predict", content=b"x", headers={"content-type": "image/png"}).status_code == 415


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WebP", "GIF", "BMP"])
def test_the_picture_is_shown_as_it_was_sent(keeping: httpx.Client, format_: str) -> None:
    data = encode(draw(3), format_)
    (entry,) = predict(keeping, data)
    answer = keeping.get(f"/feedback/{entry['id']}/picture")
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == f"image/{format_.lower()}"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_the_least_confident_are_listed_until_they_are_labelled(keeping: httpx.Client) -> None:
    entries = predict(keeping, *(png(seed) for seed in range(20)), model="pets")
    ids = [entry["id"] for entry in sorted(entries, key=lambda entry: (entry["probability"], entry["id"]))]
    assert keeping.get(f"/feedback/{ids[-1]}/picture").status_code == 200  # all of them are written
    queue = keeping.get("/feedback/queue", params={"model": "pets"}).json()["queue"]
    assert [found["id"] for found in queue] == ids
    (shown,) = (entry for entry in entries if entry["id"] == ids[0])
    created = queue[0].pop("created")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", created)
    assert queue[0] == {
        "id": ids[0],
        "model": "pets",
        "version": 1,
        "filename": shown["filename"],
        "label": shown["label"],
        "probability": shown["probability"],
        "picture": f"/feedback/{ids[0]}/picture",
    }
    assert say(keeping, ids[0], "dog").json() == {
        "id": ids[0],
        "model": "pets",
        "predicted": shown["label"],
        "label": "dog",
    }
    queue = keeping.get("/feedback/queue", params={"model": "pets", "limit": 2}).json()["queue"]
    assert [found["id"] for found in queue] == ids[1:3]
    assert {found["model"] for found in keeping.get("/feedback/queue").json()["queue"]} == {"pets", "cifar10"}
    assert keeping.get("/feedback/queue?model=nothing").json() == {"queue": []}
    assert keeping.get("/feedback/queue?limit=0").status_code == 422


def test_the_last_label_holds_and_is_counted(keeping: httpx.Client) -> None:
    (entry,) = predict(keeping, png(4))
    assert keeping.get(f"/feedback/{entry['id']}/picture").status_code == 200
    before = {model["name"]: model for model in keeping.get("/feedback").json()["models"]}["cifar10"]
    for label in ("ship", " newt "):
        assert say(keeping, entry["id"], label).json()["label"] == label.strip()
    summary = keeping.get("/feedback").json()
    after = {model["name"]: model for model in summary["models"]}["cifar10"]
    assert after["labels"] == {**before["labels"], "newt": 1}
    assert 0 < summary["bytes"] < summary["max_bytes"] == 1_000_000_000
    assert summary["max_days"] == 90


def test_a_forgotten_prediction_is_gone(keeping: httpx.Client, data_dir: Path) -> None:
    data = encode(draw(5), "BMP")
    (entry,) = predict(keeping, data)
    assert keeping.get(f"/feedback/{entry['id']}/picture").status_code == 200
    assert keeping.delete(f"/feedback/{entry['id']}").status_code == 204
    assert not any(data[100:200] in path.read_bytes() for path in file_of(data_dir).parent.iterdir())
    for answer in (
        keeping.delete(f"/feedback/{entry['id']}"),
        keeping.get(f"/feedback/{entry['id']}/picture"),
        say(keeping, entry["id"], "cat"),
    ):
        assert entry["id"] in problem(answer, 404, "unknown-prediction")


@pytest.mark.parametrize("name", ["x", "00000000-0000-0000-0000-000000000000", uuid7.floor(1e9), uuid7.floor(1e11)])
def test_unknown_ids(keeping: httpx.Client, name: str) -> None:
    assert "GET /feedback/queue" in problem(say(keeping, name, "cat"), 404, "unknown-prediction")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"id": "ID", "label": ""}, 422, "label: Value error, is empty"),
        ({"id": "ID", "label": "../../etc"}, 422, "slash"),
        ({"id": "ID", "label": ".."}, 422, "dot"),
        ({"id": "ID", "label": "a\u0000b"}, 422, "control character"),
        ({"id": "ID", "label": "x" * 256}, 422, "256 characters"),
        ({"id": "ID", "label": "CAT"}, 422, "differs only in case or spaces from 'cat'"),
        ({"id": "ID", "label": 5}, 422, "label"),
        ({"id": "ID"}, 422, "label"),
        ({"label": "cat"}, 422, "id"),
        ({"id": "ID", "label": "cat", "who": "me"}, 422, "who"),
    ],
)
def test_labels_that_are_refused(keeping: httpx.Client, body: dict[str, Any], status: int, said: str) -> None:
    (entry,) = predict(keeping, png(6))
    answer = keeping.post("/feedback", json=body | ({"id": entry["id"]} if body.get("id") else {}))
    assert said in problem(answer, status, "invalid-request")


def test_bodies_that_are_refused(keeping: httpx.Client) -> None:
    assert keeping.post("/feedback", data={"id": "x", "label": "cat"}).status_code == 415
    assert keeping.post("/feedback", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    broken = rb'{"id": "x", "label": "\ud800"}'
    assert keeping.post("/feedback", content=broken, headers={"content-type": "application/json"}).status_code == 422


def test_too_little_feedback_to_train_on_says_what_to_do(keeping: httpx.Client) -> None:
    said = problem(finetune(keeping, name="nothing"), 422, "invalid-dataset")
    assert "GET /feedback/queue?model=nothing" in said
    assert "'dataset'" in problem(finetune(keeping, dataset="feedbag", name="pets"), 422, "invalid-request")


def test_a_snapshot_of_the_labels_becomes_a_job(keeping: httpx.Client, data_dir: Path) -> None:
    entries = predict(keeping, *(png(seed) for seed in range(100, 108)), model="pets")
    for entry, label in zip(entries, ["fish"] * 3 + ["newt"] * 3 + ["eel"] * 2, strict=True):
        assert say(keeping, entry["id"], label).status_code == 200
    job = accepted(finetune(keeping, "once", name="pets", method="head"))
    shown = keeping.get(f"/finetune/{job}").json()
    assert shown["name"] == "pets"
    assert "Class 'eel' is left out: it has 2 labelled pictures and needs 3." in shown["warnings"]
    (archive,) = (data_dir / "jobs" / job).iterdir()
    assert re.fullmatch(r"[0-9a-f]{64}\.zip", archive.name)
    # Sent again with the same key it is the same job, whatever was labelled meanwhile.
    say(keeping, entries[7]["id"], "newt")
    assert accepted(finetune(keeping, "once", name="pets", method="head")) == job
    assert problem(finetune(keeping, "once", name="pets", method="full"), 422, "key-reused")
    assert accepted(finetune(keeping, name="pets", method="head")) != job
    for entry in entries:
        assert keeping.delete(f"/feedback/{entry['id']}").status_code == 204
    problem(finetune(keeping, name="pets", method="head"), 422, "invalid-dataset")
    assert accepted(finetune(keeping, "once", name="pets", method="head")) == job


def test_several_processes_share_what_is_kept_and_its_limit_and_ask_for_the_key(models: Path, tmp_path: Path) -> None:
    one_request_each = httpx.Limits(max_keepalive_connections=0)
    key = {"X-API-Key": "second"}
    with (
        serve(
            models, "--workers", "2", keep_feedback=True, feedback_max_mb=2, api_keys="first,second", data_dir=tmp_path
        ) as server,
        httpx.Client(base_url=server.url, timeout=60, limits=one_request_each) as client,
    ):
        for method, path in CALLS:
            assert client.request(method, path).status_code == 401
        client.headers.update(key)
        ids = [predict(client, png(seed))[0]["id"] for seed in range(30)]
        for name in ids:
            # Whichever process is asked, and however soon.
            assert say(client, predict(client, png(1))[0]["id"], "dog").status_code == 200
            assert client.get(f"/feedback/{name}/picture").status_code == 200
        (model,) = client.get("/feedback").json()["models"]
        assert (model["unlabelled"], model["labels"]) == (30, {"dog": 30})
        large = encode(draw(7, 300, 300), "BMP")
        newest = [predict(client, large)[0]["id"] for _ in range(12)][-1]
        assert client.get(f"/feedback/{newest}/picture").status_code == 200
        # What the other process has not written yet does not count: little may be kept before too much is.
        until(lambda: client.get(f"/feedback/{ids[0]}/picture").status_code == 404)
        problem(client.get(f"/feedback/{ids[0]}/picture"), 404, "unknown-prediction")
        until(lambda: client.get("/feedback").json()["bytes"] <= 2_000_000)
        assert client.get("/feedback").json()["models"][0]["labels"] == {"dog": 30}, "labels are worth more"
    with sqlite3.connect(file_of(tmp_path)) as database:
        assert database.execute("SELECT DISTINCT api_key FROM predictions ORDER BY 1").fetchall() == [(None,), (2,)]
    database.close()


def test_what_was_answered_outlives_a_killed_service(models: Path, tmp_path: Path) -> None:
    labelled: list[str] = []
    others: list[str] = []

    def use(server: Server) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while True:
                try:
                    first, second = predict(client, png(len(labelled)), png(0))
                    if say(client, first["id"], "dog").status_code == 200:
                        labelled.append(first["id"])
                        others.append(second["id"])  # of the same request, so it is written too
                except httpx.TransportError:
                    return

    with serve(models, keep_feedback=True, data_dir=tmp_path) as server:
        user = threading.Thread(target=use, args=(server,))
        user.start()
        until(lambda: len(labelled) >= 20)
        server.process.kill()
        user.join()
    with sqlite3.connect(file_of(tmp_path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    with serve(models, keep_feedback=True, data_dir=tmp_path) as server, httpx.Client(base_url=server.url) as client:
        (model,) = client.get("/feedback").json()["models"]
        # An answer may have been lost on its way.
        assert len(labelled) <= model["labels"]["dog"] <= len(labelled) + 1
        assert all(client.get(f"/feedback/{name}/picture").status_code == 200 for name in (*labelled, *others))
        assert say(client, predict(client, png(1))[0]["id"], "dog").status_code == 200


def test_a_full_disk_costs_the_ids_and_not_the_predictions(models: Path, tmp_path: Path) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with (
        serve(models, keep_feedback=True, data_dir=tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        (first,) = predict(client, png(1))
        assert say(client, first["id"], "dog").status_code == 200
        # Not one page can be written any more, as on a disk that is full.
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (16_000, resource.RLIM_INFINITY))
        early = [*iter(lambda: predict(client, png(2))[0].get("id"), None)]
        assert early, "it has to be tried first"
        assert all(set(predict(client, png(3))[0]) == {"filename", "label", "probability", "top"} for _ in range(5))
        problem(say(client, first["id"], "cat"), 503, "feedback-unavailable")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        until(lambda: "id" in predict(client, png(4))[0])
        assert all(client.get(f"/feedback/{name}/picture").status_code == 200 for name in early)
        assert say(client, first["id"], "cat").status_code == 200
        assert sum("Predictions carry no id" in line for line in server.log) == 1


def test_a_model_learns_a_class_from_labels_and_forgets_none(tmp_path: Path) -> None:
    """The real model takes discs for something else, is told so, and the version that it becomes knows them."""
    shutil.copytree(ROOT / "models" / "cifar10", tmp_path / "models" / "cifar10")
    known = artifact.read_manifest(tmp_path / "models" / "cifar10" / "1").classes
    discs = [encode(shapes.draw("disc", seed)) for seed in range(40)]
    with (
        serve(tmp_path / "models", keep_feedback=True, data_dir=tmp_path / "data", finetune_workers=1) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        predict(client, *discs[:25])
        until(lambda: len(client.get("/feedback/queue").json()["queue"]) == 25)
        queue = client.get("/feedback/queue").json()["queue"]
        assert {entry["label"] for entry in queue} <= set(known)
        for entry in queue:
            assert say(client, entry["id"], "disc").status_code == 200
        job = accepted(finetune(client, name="cifar10", method="head"))
        last = wait(client, job, ended)
        assert last["status"] == "succeeded", last
        assert last["result"]["promoted"], last["result"]["reason"]
        manifest = artifact.verify(tmp_path / "models" / "cifar10" / "2")
        assert (manifest.parent, manifest.classes) == ("cifar10@1", (*known, "disc"))
        assert last["result"]["metrics"]["forgetting"]["lost_points"] < 5
        until(lambda: client.get("/models/cifar10").json()["serving"] == 2)
        labels = [entry["label"] for entry in predict(client, *discs[25:])]
        assert labels.count("disc") >= 12
