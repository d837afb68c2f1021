"""Processes that try engines: they crash, or are ended, without harm to who waits for them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.serving.processes import Processes
from training.errors import ArtifactError


def test_engine_that_crashes_costs_only_itself() -> None:
    started = '{"started":"openvino-f32"}'
    found = Processes().run(["sh", "-c", f"echo '{started}'; echo divided by zero >&2; kill -FPE $$"])
    assert [result.kind for result in found] == ["openvino-f32"]
    assert "ended with -8: divided by zero" in str(found[0].error)
    assert not found[0].passing


def test_engine_that_takes_too_long_may_do_better_the_next_time() -> None:
    found = Processes(seconds=1).run(["sh", "-c", """echo '{"started":"native-f32"}'; exec sleep 600"""])
    assert [result.kind for result in found] == ["native-f32"]
    assert "it took longer than 1 s" in str(found[0].error)
    assert found[0].passing


def test_what_is_being_tried_ends_with_the_service(tmp_path: Path) -> None:
    processes = Processes()
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(processes.run, ["sh", "-c", f"echo begun > {begun}; exec sleep 600"])
        assert begun.read_text() == "begun\n"  # waits for it
        processes.close()
        with pytest.raises(ArtifactError, match="shutting down"):
            waiting.result()
    with pytest.raises(ArtifactError, match="shutting down"):
        processes.run(["sleep", "600"])


def test_tryout_that_cannot_start_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="cannot be tried: no such thing"):
        Processes().run(["sh", "-c", "echo no such thing >&2; exit 1"])
