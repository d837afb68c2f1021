"""Uploads of datasets: refused at once with every problem, or accepted once. No worker runs here."""

import asyncio
import io
import lzma
import resource
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.app import artifacts
from tests.app.jobs import TINY, accepted, shapes, submit
from tests.app.process import Server, serve
from tests.encoding import encode
from tests.training.shapes import draw


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intake") / "models"
    artifacts.write(folder, "cifar10", seed=1)
    artifacts.write(folder, "unpromoted", seed=2, promote=False)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with serve(models, max_upload_mb=1, max_dataset_mb=3, max_dataset_files=500) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as connected:
        yield connected


def jobs_folder(models: Path) -> Path:
    return models.parent / "models-data" / "jobs"


def problems(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:refit:problem:invalid-dataset"
    found: list[str] = answer.json()["errors"]
    return found


def test_a_dataset_is_accepted_and_waits(client: httpx.Client, models: Path) -> None:
    archive = shapes(count=5)
    job = accepted(submit(client, archive, name="waits", epochs=3, **TINY))
    shown = client.get(f"/finetune/{job}").json()
    assert (shown["id"], shown["name"], shown["status"], shown["result"]) == (job, "waits", "queued", None)
    assert shown["progress"]["epoch"] == 0
    assert client.get("/finetune", params={"limit": 1}).json()["jobs"] == [shown]
    (kept,) = (jobs_folder(models) / job).iterdir()
    assert kept.read_bytes() == archive


def test_a_dataset_may_be_larger_than_a_picture(client: httpx.Client) -> None:
    noise = zipfile.ZipFile(large := io.BytesIO(), "w")
    noise.writestr("notes.txt", bytes(range(256)) * 6000)
    for kind in ("disc", "cross"):
        for number in range(4):
            noise.writestr(f"{kind}/{number}.png", encode(draw(kind, number)))
    noise.close()
    assert len(large.getvalue()) > 1_000_000
    accepted(submit(client, large.getvalue(), name="large", **TINY))
    answer = submit(client, large.getvalue() * 2, name="large", **TINY)
    assert answer.status_code == 413
    assert "APP_MAX_DATASET_MB" in answer.json()["detail"]


def test_a_key_makes_repeated_requests_one_job(client: httpx.Client, models: Path) -> None:
    archive = shapes(count=5)
    first = accepted(submit(client, archive, key="once", name="once", **TINY))
    assert accepted(submit(client, archive, key="once", name="once", **TINY)) == first
    assert accepted(submit(client, archive, key="twice", name="once", **TINY)) != first
    for other in (
        submit(client, archive, key="once", name="another", **TINY),
        submit(client, shapes(count=6), key="once", name="once", **TINY),
    ):
        assert other.status_code == 422
        assert other.json()["type"] == "urn:refit:problem:key-reused"
    assert client.get(f"/finetune/{first}").json()["name"] == "once"
    (kept,) = (jobs_folder(models) / first).iterdir()
    assert kept.read_bytes() == archive


def test_of_two_archives_with_one_key_at_the_same_time_one_is_kept(client: httpx.Client, models: Path) -> None:
    archives = [shapes(count=count) for count in (5, 6)]

    def send(key: str, archive: bytes) -> httpx.Response:
        return submit(client, archive, key=key, name="race", **TINY)

    with ThreadPoolExecutor(2) as threads:
        for key in map(str, range(8)):
            answers = list(threads.map(send, [key, key], archives))
            (won,) = (number for number, answer in enumerate(answers) if answer.status_code == 202)
            assert answers[1 - won].json()["type"] == "urn:refit:problem:key-reused"
            (kept,) = (jobs_folder(models) / accepted(answers[won])).iterdir()
            assert kept.read_bytes() == archives[won]


def test_jobs_with_keys_are_listed_newest_first_on_all_pages(client: httpx.Client) -> None:
    archive = shapes(count=4)
    jobs = [accepted(submit(client, archive, key=f"listed {number}", name="listed", **TINY)) for number in range(8)]

    def listed(limit: int, offset: int) -> list[str]:
        found = client.get("/finetune", params={"limit": limit, "offset": offset}).json()["jobs"]
        return [job["id"] for job in found]

    assert listed(8, 0) == jobs[::-1]
    assert [job for offset in range(8) for job in listed(1, offset)] == jobs[::-1]


def test_every_problem_is_listed_at_once(client: httpx.Client, models: Path) -> None:
    before = set(jobs_folder(models).iterdir())
    good = encode(draw("disc", 1))
    extra = {
        "empty/": b"",
        "tiny/0.png": good,
        "Disc/9.png": good,
        "disc/text.png": b"no picture",
        "cross/half.png": good[: len(good) // 2],
    }
    found = "\n".join(problems(submit(client, shapes(count=5, extra=extra), name="bad", **TINY)))
    for said in ("'empty' is empty", "'tiny' has 1 picture", "differ only in case", "disc/text.png", "cross/half.png"):
        assert said in found
    assert set(jobs_folder(models).iterdir()) == before, "nothing of a refused upload is kept"


def one_class() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(9):
            archive.writestr(f"disc/{number}.png", encode(draw("disc", number)))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("filename", "archive", "said"),
    [
        ("shapes.zip", b"no archive", "cannot be read"),
        ("shapes.zip", shapes(count=4)[:-300], "cannot be read"),
        ("shapes.rar", shapes(count=4), "is no archive that can be read"),
        ("shapes.zip", one_class(), "only one class"),
        (
            "shapes.zip",
            shapes(count=4, extra={"Hund/IMG_1.HEIC": b"heic"}),
            "'Hund' holds no pictures, only 1 file (.heic)",
        ),
        ("shapes.zip", shapes(count=0, extra={"1.png": encode(draw("disc", 1))}), "1 picture in no class folder"),
        ("shapes.zip", shapes(count=4, extra={"../outside.png": b""}), "points outside"),
        ("shapes.zip", shapes(count=4, extra={"/etc/passwd": b""}), "points outside"),
        ("shapes.zip", shapes(count=251), "more than 500 files"),
        ("shapes.zip", shapes(count=4, extra={"zeros.bin": bytes(300_000_000)}), "times its size"),
    ],
)
def test_archives_that_are_refused(client: httpx.Client, filename: str, archive: bytes, said: str) -> None:
    found = problems(submit(client, archive, filename=filename, name="x", **TINY))
    assert said in "\n".join(found)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"base": "cifar10"}, True),
        ({"base": "cifar10", "classes": "replace"}, True),
        ({"base": "cifar10", "classes": "add"}, False),
        ({}, True),
    ],
)
def test_one_class_is_enough_only_to_be_added(client: httpx.Client, fields: dict[str, Any], refused: bool) -> None:
    answer = submit(client, one_class(), name="single", **fields)
    if not refused:
        accepted(answer)
        return
    assert "only one class, 'disc'" in "\n".join(problems(answer))


def test_a_header_that_claims_more_than_any_has_is_refused_unread(client: httpx.Client, server: Server) -> None:
    claimed = 300_000_000
    item = tarfile.TarInfo("long")
    item.type, item.size = tarfile.GNUTYPE_LONGNAME, claimed
    packed = lzma.compress(item.tobuf(tarfile.USTAR_FORMAT) + bytes(claimed), preset=0)
    before = most_memory(server)
    (found,) = problems(submit(client, packed, filename="shapes.tar.xz", name="x", **TINY))
    assert "shapes.tar.xz cannot be read (headers of more than 65,536 bytes" in found
    assert most_memory(server) - before < claimed / 3


def most_memory(server: Server) -> int:
    """Bytes of memory that the server has had at most."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(client: httpx.Client, kind: bytes) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        item = tarfile.TarInfo("disc/0.png")
        item.type, item.linkname = kind, "/etc/passwd"
        archive.addfile(item)
    (found,) = problems(submit(client, packed.getvalue(), filename="shapes.tar.gz", name="x", **TINY))
    assert "'disc/0.png' is a" in found


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "'name'"),
        ({"name": "Big Name"}, "'name'"),
        ({"name": "x", "epochs": "no"}, "'epochs'"),
        ({"name": "x", "learning_rate": "inf"}, "'learning_rate'"),
        ({"name": "x", "colour": "red"}, "'colour'"),
        ({"name": "x", "recipe": "/etc/passwd.toml"}, "There is no recipe"),
        ({"name": "x", "base": "nothing"}, "There is no model 'nothing'"),
        ({"name": "x", "base": "cifar10@7"}, "has no version 7"),
        ({"name": "x", "base": "unpromoted"}, "in production"),
        ({"name": "x", "base": "cifar10", "recipe": "resnet20"}, "not both"),
    ],
)
def test_fields_that_are_refused(client: httpx.Client, fields: dict[str, Any], said: str) -> None:
    answer = submit(client, shapes(count=4), **fields)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]


def test_bodies_that_are_refused(client: httpx.Client) -> None:
    assert client.post("/finetune", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    no_file = client.post("/finetune", data={"name": "x"}, files={"other": b"x"})
    assert no_file.status_code == 422
    assert "'other'" in no_file.json()["detail"]
    two = [("dataset", ("a.zip", b"a")), ("dataset", ("b.zip", b"b"))]
    assert client.post("/finetune", data={"name": "x"}, files=two).status_code == 422


def test_an_upload_that_breaks_off_leaves_nothing(server: Server, models: Path) -> None:
    before = set(jobs_folder(models).iterdir())

    def breaking() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="dataset"; filename="a.zip"\r\n\r\n' + bytes(200_000)
        raise ConnectionError

    with httpx.Client(base_url=server.url, timeout=60) as client, pytest.raises(ConnectionError):
        client.post("/finetune", content=breaking(), headers={"content-type": "multipart/form-data; boundary=b"})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        accepted(submit(client, shapes(count=4), key="after", name="after", **TINY))
    assert {path.name for path in jobs_folder(models).iterdir() if path.name.startswith(".upload")} == set()
    assert len(set(jobs_folder(models).iterdir()) - before) == 1


def costly() -> bytes:
    """A small zip of 300 PNGs that take half a second each to decode."""
    packed = io.BytesIO()
    picture = encode(Image.new("1", (7000, 7000)))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(300):
            archive.writestr(f"{'disc' if number % 2 else 'cross'}/{number}.png", picture)
    return packed.getvalue()


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again whether something has come true; fail when it takes too long."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


async def send_costly(client: httpx.AsyncClient, jobs: Path) -> list[asyncio.Task[httpx.Response]]:
    """Send more such archives than are screened at a time, and wait until all have arrived."""
    files = {"dataset": ("costly.zip", costly())}
    sent = [asyncio.create_task(client.post("/finetune", files=files, data={"name": "x", **TINY})) for _ in range(6)]
    await asyncio.to_thread(wait_until, lambda: len(list(jobs.glob(f"*/{'?' * 64}.zip"))) == len(sent))
    return sent


def test_archives_that_take_long_to_screen_hold_up_neither_others_nor_the_end(models: Path, tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            sent = await send_costly(client, tmp_path / "jobs")
            assert (await client.get("/models")).status_code == 200
            assert await asyncio.to_thread(server.stop) == 0
            answers = [answer.json() for answer in await asyncio.gather(*sent)]
        refused = [answer for answer in answers if answer["status"] != "queued"]
        assert {answer["type"] for answer in refused} == {"urn:refit:problem:closing"}

    with serve(models, data_dir=tmp_path) as server:
        asyncio.run(scenario(server))
    assert not list((tmp_path / "jobs").glob(".upload-*"))


def test_screening_ends_when_its_client_hangs_up(models: Path, tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for sent in await send_costly(client, tmp_path / "jobs"):
                sent.cancel()
            await asyncio.to_thread(wait_until, lambda: not list((tmp_path / "jobs").glob(".upload-*")))

    with serve(models, data_dir=tmp_path) as server:
        asyncio.run(scenario(server))
        with httpx.Client(base_url=server.url, timeout=60) as client:
            accepted(submit(client, shapes(count=4), name="after", **TINY))
    assert not any("Traceback" in line for line in server.log)


def test_a_full_disk_refuses_the_upload(models: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("notes.txt", bytes(1_000_000))
    with serve(models) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
        answer = submit(client, packed.getvalue(), name="x", **TINY)
        assert answer.status_code == 507, answer.text
        assert answer.json()["type"] == "urn:refit:problem:disk-full"
        assert client.get("/readyz").status_code == 200


def test_unknown_jobs_and_queued_ones_that_are_cancelled(client: httpx.Client) -> None:
    for answer in (client.get("/finetune/nothing"), client.delete("/finetune/nothing")):
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:refit:problem:unknown-job"
    assert client.get("/finetune/nothing/events").status_code == 404
    job = accepted(submit(client, shapes(count=4), name="unwanted", **TINY))
    for _ in range(2):
        assert client.delete(f"/finetune/{job}").status_code == 202
        assert client.get(f"/finetune/{job}").json()["status"] == "cancelled"


def test_without_the_database_pictures_are_served_all_the_same(models: Path) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/refit"
    with (
        serve(models, database_url=nowhere, finetune_workers=1) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        answer = client.get("/finetune")
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:refit:problem:queue-unavailable"
        assert int(answer.headers["retry-after"]) > 0
        assert client.post("/predict", files={"file": encode(draw("disc", 1))}).status_code == 200
        # Said once, however often it is tried.
        assert sum("No fine-tune can run for now" in line for line in server.log) == 1


def test_a_key_is_asked_for(models: Path) -> None:
    with serve(models, api_keys="first-key") as guarded, httpx.Client(base_url=guarded.url, timeout=60) as client:
        assert submit(client, shapes(count=4), name="x", **TINY).status_code == 401
        for path in ("/finetune", "/finetune/x", "/finetune/x/events", "/finetune/x/log"):
            assert client.get(path).status_code == 401
        assert client.get("/finetune", headers={"X-API-Key": "first-key"}).status_code == 200
