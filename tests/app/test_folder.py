"""Jobs' folders: what is kept, and for how long."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.jobs.folder import JobFolder, State, find_dataset, new_upload, prune
from app.jobs.job import Progress

DAY = 24 * 3600


def put(data_dir: Path, job: str, hours: float, size: int = 100) -> Path:
    """An archive that was sent some hours ago."""
    upload = new_upload(data_dir)
    archive = upload / f"{job[0] * 64}.tar.gz"
    archive.write_bytes(bytes(size))
    sent = time.time() - hours * 3600
    os.utime(archive, (sent, sent))
    JobFolder(data_dir, job).adopt(upload, archive.name)
    return data_dir / "jobs" / job / archive.name


def test_the_newest_archives_and_those_of_active_jobs_are_kept(tmp_path: Path) -> None:
    old, active, middle, young = (put(tmp_path, job, hours) for job, hours in (("a", 9), ("b", 8), ("c", 2), ("d", 0)))
    prune(tmp_path, {"b"}, keep_bytes=150)
    assert [path.exists() for path in (old, active, middle, young)] == [False, True, True, True]
    prune(tmp_path, {"b"}, keep_bytes=0)
    assert [path.exists() for path in (active, middle, young)] == [True, False, True]
    assert find_dataset(tmp_path, "b" * 64) == active
    assert find_dataset(tmp_path, "c" * 64) is None


def test_what_a_killed_job_left_is_deleted_once_it_has_ended(tmp_path: Path) -> None:
    ended, active = (JobFolder(tmp_path, job).checkpoint for job in ("ended", "active"))
    for checkpoint in (ended, active):
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"epochs")
        os.utime(checkpoint.parent, (time.time() - DAY,) * 2)
    prune(tmp_path, {"active"}, keep_bytes=0)
    assert (ended.exists(), active.exists()) == (False, True)


def test_interrupted_uploads_are_deleted_the_day_after(tmp_path: Path) -> None:
    abandoned, running = new_upload(tmp_path), new_upload(tmp_path)
    os.utime(abandoned, (time.time() - DAY - 60,) * 2)
    prune(tmp_path, set(), keep_bytes=0)
    assert (abandoned.exists(), running.exists()) == (False, True)


def test_what_was_written_while_the_clock_was_wrong_is_deleted_too(tmp_path: Path) -> None:
    archive, upload = put(tmp_path, "a", hours=-24 * 365), new_upload(tmp_path)
    os.utime(upload, (time.time() + 365 * DAY,) * 2)
    prune(tmp_path, set(), keep_bytes=0)
    assert (archive.exists(), upload.exists()) == (False, False)


def test_an_upload_is_no_jobs_data(tmp_path: Path) -> None:
    archive = new_upload(tmp_path) / f"{'b' * 64}.zip"
    archive.write_bytes(b"screened")
    sent = time.time() - DAY / 2
    os.utime(archive, (sent, sent))
    assert find_dataset(tmp_path, "b" * 64) is None
    prune(tmp_path, set(), keep_bytes=0)
    assert archive.exists()
    JobFolder(tmp_path, "a").adopt(archive.parent, archive.name)
    assert find_dataset(tmp_path, "b" * 64) == tmp_path / "jobs" / "a" / archive.name


def test_workers_that_prune_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    archives = [put(tmp_path, f"{number:x}-{number}", hours=2) for number in range(300)]
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda _: prune(tmp_path, set(), keep_bytes=0), range(8)))
    assert not any(archive.exists() for archive in archives)


def test_nothing_to_prune(tmp_path: Path) -> None:
    prune(tmp_path / "nothing", set(), keep_bytes=0)


def test_the_last_report_is_read_back(tmp_path: Path) -> None:
    put(tmp_path, "a", 0)
    folder = JobFolder(tmp_path, "a")
    assert folder.read_state() == State()
    reported = State(progress=Progress(epoch=3, loss=float("nan")), warnings=["stray.png"])
    folder.write_state(reported)
    assert folder.read_state().warnings == ["stray.png"]
    assert folder.read_state().progress == Progress(epoch=3, loss=None)
