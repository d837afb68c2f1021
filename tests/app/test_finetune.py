"""Fine-tunes over HTTP, from the upload to the answer of the new version, with real workers that are really killed."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from dbos import DBOSClient

from app.jobs.queue import APPLICATION, SERIALIZER
from app.jobs.worker import Worker
from app.settings import Settings
from tests.app import artifacts, postgres
from tests.app.jobs import END_SECONDS, TINY, Job, accepted, ended, follow, shapes, submit, trained, versions, wait
from tests.app.process import Server, serve
from tests.app.test_audit import lines
from tests.encoding import encode
from tests.training.shapes import draw
from training import artifact, lock, run

ROUNDS = int(os.environ.get("REFIT_CHAOS_ROUNDS", "2"))
LONG: dict[str, Any] = {**TINY, "epochs": 12}  # enough to be interrupted in
SHORT: dict[str, Any] = {**TINY, "epochs": 2}
ARCHIVE = shapes()


def new_models(folder: Path) -> Path:
    artifacts.write(folder / "models", "cifar10", seed=1)
    return folder / "models"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return new_models(tmp_path)


@contextmanager
def running(models: Path, **settings: Any) -> Iterator[tuple[Server, httpx.Client]]:
    """A service with one worker, unless told otherwise, and a client of it."""
    with (
        serve(models, **{"finetune_workers": 1, "finetune_threads": 1, **settings}) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, httpx.Client, list[Job]]]:
    """The models, a client, and every event of a job that nothing disturbed."""
    models = new_models(tmp_path_factory.mktemp("reference"))
    with running(models) as (_, client):
        job = accepted(submit(client, ARCHIVE, name="shapes", **LONG))
        yield models, client, list(follow(client, job))


def worker_process(server: Server) -> int:
    """The process of the worker that was started last, once it is up."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        started = [
            found[1] for line in list(server.log) if (found := re.search(r"process (\d+), waits for jobs", line))
        ]
        if started and Path("/proc", started[-1]).exists():
            return int(started[-1])
        time.sleep(0.05)
    raise AssertionError("no worker has started:\n" + "".join(server.log))


def gives_way(process: int, leader: int) -> None:
    """Check that it leaves the processors to others, in the session of `leader`."""
    assert os.getpriority(os.PRIO_PROCESS, process) == 19
    assert os.sched_getscheduler(process) == os.SCHED_IDLE
    assert os.getsid(process) == os.getsid(leader)


def attempts(models: Path, job: str) -> int | None:
    """How often a worker took up the job; DBOS gives up one that it counts too many of."""
    client = DBOSClient(
        system_database_url=f"sqlite:///{models}-data/jobs.sqlite", serializer=SERIALIZER, application_name=APPLICATION
    )
    (found,) = client.list_workflows(workflow_ids=[job])
    client.destroy()
    return found.recovery_attempts


def figures(job: Job) -> object:
    """What has to be the same whether or not a job was disturbed."""
    return job["result"]["metrics"]


def promotions(models: Path, job: str) -> list[tuple[object, object]]:
    """The versions before and after each promotion by a job, from the audit log."""
    return [(line["from"], line["to"]) for line in lines(Path(f"{models}-data")) if line["who"] == f"job {job}"]


def test_a_job_goes_from_upload_to_answers(reference: tuple[Path, httpx.Client, list[Job]]) -> None:
    models, client, events = reference
    job, last = events[0]["id"], events[-1]
    assert last["status"] == "succeeded", last
    assert client.get(f"/finetune/{job}").json() == last
    assert [event["status"] for event in events].index("running") < len(events) - 1
    epochs = [event["progress"]["epoch"] for event in events]
    assert epochs == sorted(epochs)
    assert last["progress"]["epoch"] == last["progress"]["epochs"] == LONG["epochs"]
    assert 0 <= last["progress"]["val_accuracy"] <= 1
    assert last["progress"]["eta_seconds"] == 0
    result = last["result"]
    assert (result["model"], result["version"], result["promoted"], result["comparison"]) == ("shapes", 1, True, None)
    manifest = artifact.verify(artifact.folder(models, "shapes", 1))
    assert result["metrics"]["test"]["accuracy"] == manifest.metrics["test"]["accuracy"]
    assert artifact.read_aliases(models, "shapes").production == 1
    assert promotions(models, job) == [(None, 1)]
    answer = client.post("/predict", params={"model": "shapes"}, files={"file": encode(draw("disc", 1000))})
    assert answer.json()["predictions"][0]["label"] in {"disc", "cross"}
    assert "training 12 epochs" in client.get(f"/finetune/{job}/log").text


def test_a_new_model_starts_from_the_default_one_and_then_from_itself(models: Path) -> None:
    with running(models) as (_, client):
        for base in ("cifar10@1", "shapes@1"):
            job = accepted(submit(client, ARCHIVE, name="shapes", method="head", promote="never"))
            last = wait(client, job, ended)
            assert last["status"] == "succeeded", last
            version = last["result"]["version"]
            manifest = artifact.verify(artifact.folder(models, "shapes", version))
            assert manifest.parent == base
            assert manifest.classes == ("cross", "disc")
        assert last["result"]["comparison"]["pictures"]["candidate"] == manifest.metrics["test"]["count"]
    assert versions(models, "shapes") == [1, 2]


def test_a_better_version_is_promoted_and_a_worse_one_is_not(
    reference: tuple[Path, httpx.Client, list[Job]],
) -> None:
    models, client, _ = reference
    asked: dict[str, Any] = {**TINY, "name": "shapes"}
    # One epoch, in which hardly anything is learned, then the first job's own recipe again.
    worse = accepted(submit(client, ARCHIVE, epochs=1, **asked))
    equal = accepted(submit(client, ARCHIVE, epochs=LONG["epochs"], **asked))
    unwanted = accepted(submit(client, ARCHIVE, epochs=1, promote="never", **asked))
    second, third, fourth = (wait(client, job, ended)["result"] for job in (worse, equal, unwanted))
    assert [found["version"] for found in (second, third, fourth)] == [2, 3, 4]
    assert not second["promoted"]
    assert not second["comparison"]["passed"]
    assert "macro F1" in second["reason"]
    scores = third["comparison"]["scores"]
    assert third["promoted"]
    assert (third["comparison"]["candidate"], third["comparison"]["production"]) == (3, 1)
    for figure in ("accuracy", "macro_f1", "calibration_error", "old_class_accuracy", "bytes"):
        assert scores["candidate"][figure] == scores["production"][figure]
    test = artifact.read_manifest(artifact.folder(models, "shapes", 3)).metrics["test"]
    assert scores["candidate"]["accuracy"] == test["accuracy"]
    assert third["comparison"]["pictures"] == {"candidate": test["count"]}
    assert not fourth["promoted"]
    assert artifact.read_aliases(models, "shapes").production == 3
    assert [promotions(models, job) for job in (worse, equal, unwanted)] == [[], [(1, 3)], []]


def test_a_job_waits_for_a_run_of_the_command_line_and_keeps_its_checkpoint(
    reference: tuple[Path, httpx.Client, list[Job]],
) -> None:
    models, client, _ = reference
    runs = run.runs_folder(models, "held")
    with lock.exclusive(runs, "python -m training train"):
        runs.mkdir()
        (runs / "checkpoint.pt").write_bytes(b"interrupted")
        job = accepted(submit(client, ARCHIVE, name="held", **SHORT))
        end = time.monotonic() + 60
        while "(python -m training train)" not in client.get(f"/finetune/{job}/log").text:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert client.get(f"/finetune/{job}").json()["status"] == "running"
    assert wait(client, job, ended)["result"]["version"] == 1
    assert (runs / "checkpoint.pt").read_bytes() == b"interrupted"


def test_a_running_job_is_cancelled_and_nothing_is_left_of_it(models: Path) -> None:
    with running(models) as (server, client):
        job = accepted(submit(client, ARCHIVE, name="unwanted", **LONG))
        wait(client, job, trained(2))
        training = child_of(worker_process(server))
        gives_way(training, server.process.pid)
        assert client.delete(f"/finetune/{job}").status_code == 202
        assert client.get(f"/finetune/{job}").json()["status"] == "cancelled"
        wait_gone(training)
        # The worker is free again, and what the cancelled run left is not taken for the next one's.
        after = wait(client, accepted(submit(client, ARCHIVE, name="unwanted", **SHORT)), ended)
        assert after["result"]["version"] == 1
        answer = client.delete(f"/finetune/{after['id']}")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:refit:problem:job-ended")


def test_a_job_that_is_cancelled_while_its_version_is_written_leaves_nothing_of_it(models: Path) -> None:
    with running(models) as (server, client):
        job = accepted(submit(client, ARCHIVE, name="unwanted", **SHORT))
        wait(client, job, lambda found: found["status"] == "running")
        training = child_of(worker_process(server))
        end = time.monotonic() + END_SECONDS
        while not list(models.glob("unwanted/.partial-*/*")):
            assert time.monotonic() < end
            time.sleep(0.002)
        os.kill(training, signal.SIGSTOP)  # it can be killed all the same, and gets no further until then
        assert client.delete(f"/finetune/{job}").status_code == 202
        wait_gone(training)
        end = time.monotonic() + 30
        while list((models / "unwanted").iterdir()):
            assert time.monotonic() < end, list((models / "unwanted").iterdir())
            time.sleep(0.02)


def test_a_killed_worker_is_replaced_and_its_job_goes_on(
    models: Path, reference: tuple[Path, httpx.Client, list[Job]]
) -> None:
    undisturbed = reference[2][-1]
    with running(models) as (server, client):
        job = accepted(submit(client, ARCHIVE, name="shapes", **LONG))
        wait(client, job, trained(3))
        worker = worker_process(server)
        training = child_of(worker)
        os.kill(worker, signal.SIGKILL)
        wait_gone(training)
        last = wait(client, job, ended)
        assert last["status"] == "succeeded", last
        assert figures(last) == figures(undisturbed)
        assert "goes on from its last finished epoch" in client.get(f"/finetune/{job}/log").text
        assert attempts(models, job) == 2
        assert client.post("/predict", files={"file": encode(draw("disc", 1))}).status_code == 200
    assert versions(models, "shapes") == [1]


def test_a_worker_killed_after_the_version_is_written_writes_no_second_one(models: Path) -> None:
    with running(models) as (server, client):
        # The second version: its comparison with the first takes place between writing and recording.
        first = wait(client, accepted(submit(client, ARCHIVE, name="shapes", **SHORT)), ended)
        job = accepted(submit(client, ARCHIVE, name="shapes", **SHORT))
        worker = worker_process(server)
        end = time.monotonic() + 120
        while versions(models, "shapes") != [1, 2]:
            assert time.monotonic() < end
            time.sleep(0.002)
        os.kill(worker, signal.SIGKILL)
        last = wait(client, job, ended)
    assert last["result"]["version"] == 2
    assert figures(last) == figures(first)
    assert versions(models, "shapes") == [1, 2]


def test_a_worker_that_fails_ends_with_its_training_and_the_job_goes_on(models: Path) -> None:
    with running(models) as (server, client):
        job = accepted(submit(client, ARCHIVE, name="shapes", **LONG))
        wait(client, job, trained(2))
        worker = worker_process(server)
        training = child_of(worker)
        os.kill(training, signal.SIGSTOP)  # or the worker might end because the job is done
        # Taken for the file of another worker, whose name then is none that a database takes.
        stray = Path(os.fsdecode(os.fsencode(f"{models}-data/workers/") + b"\xff"))
        stray.touch()
        try:
            wait_gone(worker)
        finally:
            stray.unlink()
            os.kill(training, signal.SIGCONT)
        last = wait(client, job, ended)
        assert last["status"] == "succeeded", last
        assert "goes on from its last finished epoch" in client.get(f"/finetune/{job}/log").text
        assert any("CRITICAL" in line for line in server.log)
        assert any(line.startswith("UnicodeEncodeError") for line in server.log)
    assert versions(models, "shapes") == [1]


def test_a_worker_that_another_one_has_recovered_already_leaves_no_trace(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    Worker(Settings(data_dir=tmp_path))._recover(gone)
    assert not gone.exists()


def test_the_service_killed_and_started_again_loses_no_job(models: Path) -> None:
    with running(models) as (server, client):
        jobs = [accepted(submit(client, ARCHIVE, name=name, **SHORT)) for name in ("one", "two")]
        wait(client, jobs[0], lambda job: job["status"] != "queued")
        worker = worker_process(server)
        server.process.kill()
        wait_gone(worker)
    with running(models) as (_, client):
        for job, name in zip(jobs, ("one", "two"), strict=True):
            assert wait(client, job, ended)["status"] == "succeeded"
            assert versions(models, name) == [1]


def left_by_a_dead_worker(models: Path) -> tuple[str, Path]:
    """A job that was begun, and the file of the worker that has died with it."""
    with running(models) as (server, client):
        job = accepted(submit(client, ARCHIVE, name="shapes", **SHORT))
        wait(client, job, lambda found: found["status"] == "running")
        worker = worker_process(server)
        server.process.kill()
        wait_gone(worker)
    (file,) = Path(f"{models}-data", "workers").glob("*/*")
    return job, file


def test_a_job_of_a_dead_worker_outlasts_a_start_with_another_database(models: Path, tmp_path: Path) -> None:
    job, _ = left_by_a_dead_worker(models)
    with running(models, database_url=f"sqlite:///{tmp_path}/other.sqlite") as (_, client):
        other = accepted(submit(client, ARCHIVE, name="other", **SHORT))
        assert wait(client, other, ended)["status"] == "succeeded"
    with running(models) as (_, client):
        assert wait(client, job, ended)["status"] == "succeeded"


@pytest.mark.parametrize("place", [".", "another-address"])
def test_a_dead_worker_is_found_wherever_its_file_lies(models: Path, place: str) -> None:
    job, file = left_by_a_dead_worker(models)
    moved = file.parents[1] / place / file.name
    moved.parent.mkdir(exist_ok=True)
    file.rename(moved)
    with running(models) as (_, client):
        assert wait(client, job, ended)["status"] == "succeeded"
    assert not moved.exists()


def test_a_full_disk_fails_the_job_and_leaves_production_alone(models: Path) -> None:
    with running(models) as (server, client):
        first = wait(client, accepted(submit(client, ARCHIVE, name="shapes", **SHORT)), ended)
        assert first["status"] == "succeeded"
        # Files above this size cannot be written any more, as on a disk that is full: a checkpoint has a megabyte.
        resource.prlimit(worker_process(server), resource.RLIMIT_FSIZE, (900_000, 900_000))
        last = wait(client, accepted(submit(client, ARCHIVE, name="shapes", **SHORT)), ended)
        assert last["status"] == "failed", last
        assert "cannot be written" in last["error"]["detail"]
        answer = client.post("/predict", params={"model": "shapes"}, files={"file": encode(draw("disc", 1))})
        assert answer.json()["version"] == 1
    assert versions(models, "shapes") == [1]
    assert not list(models.rglob(".partial-*"))


def test_a_worker_that_cannot_store_what_came_of_a_job_makes_room_for_one_that_can(models: Path) -> None:
    with running(models) as (server, client):
        job = accepted(submit(client, ARCHIVE, name="shapes", **SHORT))
        wait(client, job, lambda found: found["status"] == "running")
        worker = worker_process(server)
        # Less than the database has already; the training that runs has no such limit, and nor has the next worker.
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (30_000, 30_000))
        last = wait(client, job, ended)
        assert last["status"] == "succeeded", last
        assert worker_process(server) != worker
    assert versions(models, "shapes") == [1]


def test_what_only_the_run_finds_out_fails_the_job_with_every_problem(models: Path) -> None:
    # Too large to be decoded when it is sent.
    noise = {f"disc/large{number}.bmp": b"BM" + os.urandom(11_000_000) for number in range(2)}
    with running(models) as (_, client):
        last = wait(client, accepted(submit(client, shapes(count=5, extra=noise), name="bad", **SHORT)), ended)
    assert last["status"] == "failed"
    assert len(last["error"]["errors"]) == 2
    assert all("disc/large" in problem for problem in last["error"]["errors"])
    assert not (models / "bad").exists()


def test_warnings_are_shown_and_stop_nothing(models: Path) -> None:
    repeated = {"cross/again.png": encode(draw("disc", 1)), "stray.png": encode(draw("disc", 99)), "notes.txt": b"x"}
    with running(models) as (_, client):
        last = wait(client, accepted(submit(client, shapes(extra=repeated), name="odd", **SHORT)), ended)
    assert last["status"] == "succeeded"
    said = "\n".join(last["warnings"])
    for found in ("nearly repeat one of another class: cross/again.png", "stray.png", "notes.txt"):
        assert found in said


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """Settings that name a database."""
    if request.param == "sqlite":
        yield {}
        return
    with postgres.cluster() as url:
        yield {"database_url": url}


def test_a_worker_runs_only_while_there_are_jobs(models: Path) -> None:
    with running(models) as (server, client):
        for number in (1, 2):
            job = accepted(submit(client, ARCHIVE, name="shapes", **SHORT))
            worker = worker_process(server)
            assert sum("waits for jobs" in line for line in server.log) == number
            assert wait(client, job, ended)["status"] == "succeeded"
            wait_gone(worker)
            assert sum("ends: there are no jobs" in line for line in server.log) == number
    assert versions(models, "shapes") == [1, 2]


def test_two_workers_share_the_queue(models: Path, database: dict[str, object]) -> None:
    with running(models, finetune_workers=2, **database) as (server, client):
        # Jobs of one model wait for one another, jobs of two models run at once.
        jobs = [accepted(submit(client, ARCHIVE, name=name, **SHORT)) for name in ("one", "two", "one")]
        last = [wait(client, job, ended) for job in jobs]
        assert [found["status"] for found in last] == ["succeeded"] * 3, last
        assert [found["result"]["version"] for found in last] == [1, 1, 2]
        assert [job["id"] for job in client.get("/finetune").json()["jobs"]] == jobs[::-1]
        assert sum("waits for jobs" in line for line in server.log) == 2


def test_chaos(models: Path, database: dict[str, object]) -> None:
    """Worker or service are killed at random moments; every accepted job ends, each once, none with a wrong result."""
    rng = random.Random(ROUNDS)
    jobs: list[str] = []
    for number in range(ROUNDS):
        with running(models, **database) as (server, client), predicting(server) as failures:
            name = f"model{number % 2}"
            jobs.append(accepted(submit(client, ARCHIVE, name=name, epochs=3, promote="never", **TINY)))
            victim = rng.choice(["worker", "service"])
            worker = worker_process(server)
            time.sleep(rng.uniform(0, 8))  # the moment is what the test is about
            if victim == "worker":
                os.kill(worker, signal.SIGKILL)
                worker_process(server)
            server.process.kill()
            wait_gone(worker)
        assert failures == [], "production did not answer while the service was up"
    with running(models, **database) as (_, client):
        # Those that were begun may come last, so the first of them is waited for as long as all of them may take.
        last = [wait(client, job, ended, END_SECONDS * ROUNDS) for job in jobs]
    assert [job["status"] for job in last] == ["succeeded"] * ROUNDS, last
    assert len({str(figures(job)) for job in last}) == 1, "the same data, recipe and seed gave different results"
    for name in {job["name"] for job in last}:
        own = [job["result"]["version"] for job in last if job["name"] == name]
        assert sorted(own) == versions(models, name) == list(range(1, len(own) + 1))


@contextmanager
def predicting(server: Server) -> Iterator[list[str]]:
    """Classify a picture again and again, and list what went wrong while the server lived."""
    failures: list[str] = []
    stopped = threading.Event()
    picture = encode(draw("disc", 1))

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stopped.wait(0.05):
                try:
                    answer = client.post("/predict", params={"model": "cifar10"}, files={"file": picture})
                except httpx.TransportError as error:
                    if server.process.poll() is None and not stopped.wait(1):
                        failures.append(repr(error))
                    return
                if answer.status_code != 200:
                    failures.append(answer.text)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield failures
    finally:
        stopped.set()
        asking.join()


def child_of(process: int) -> int:
    """The one child of a process, which a worker starts a little after its job counts as running."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        found = subprocess.run(
            ["ps", "--ppid", str(process), "-o", "pid="], capture_output=True, text=True, check=False
        ).stdout
        if found:
            return int(found)
        time.sleep(0.02)
    raise AssertionError(f"process {process} has started no other")


def wait_gone(process: int) -> None:
    """Wait until a process has ended; whoever started it may not have noticed yet."""
    end = time.monotonic() + 30
    with suppress(FileNotFoundError, ProcessLookupError):
        while "\nState:\tZ" not in Path("/proc", str(process), "status").read_text():
            assert time.monotonic() < end, f"process {process} goes on"
            time.sleep(0.02)


def test_a_worker_stops_when_it_is_told_to(tmp_path: Path) -> None:
    models = new_models(tmp_path)
    environment = {**os.environ, "APP_MODELS_DIR": str(models), "APP_DATA_DIR": str(tmp_path / "data")}
    with subprocess.Popen(
        [sys.executable, "-m", "app", "worker"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if "waits for jobs" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_job_of_a_worker_that_is_no_services_own_gives_way_as_a_session(models: Path) -> None:
    environment = {**os.environ, "APP_MODELS_DIR": str(models), "APP_DATA_DIR": f"{models}-data"}
    with (
        running(models, finetune_workers=0) as (_, client),
        subprocess.Popen([sys.executable, "-m", "app", "worker"], env=environment) as worker,
    ):
        wait(client, accepted(submit(client, ARCHIVE, name="shapes", **LONG)), trained(2))
        training = child_of(worker.pid)
        gives_way(training, training)
        autogroup = Path(f"/proc/{training}/autogroup")
        assert not autogroup.exists() or autogroup.read_text().split()[1:] == ["nice", "19"]
        worker.terminate()
        assert worker.wait(30) == 0
        wait_gone(training)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"offset": 2**31 - 1}, 200),
        ({"offset": 2**31}, 422),
        ({"offset": 2**63}, 422),
        ({"offset": "9" * 5000}, 422),
        ({"offset": -1}, 422),
        ({"limit": 0}, 422),
        ({"limit": 2**63}, 422),
    ],
)
def test_page_of_the_list(
    reference: tuple[Path, httpx.Client, list[Job]], query: dict[str, int | str], status: int
) -> None:
    _, client, _ = reference
    answer = client.get("/finetune", params=query)
    assert answer.status_code == status
    if status == 422:
        assert answer.headers["content-type"] == "application/problem+json"
        (name,) = query
        assert f"query parameter '{name}'" in answer.json()["detail"]
    else:
        assert answer.json() == {"jobs": []}
