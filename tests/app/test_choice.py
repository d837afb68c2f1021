"""What was chosen on this machine: remembered where that can be, and made anew where it cannot."""

from pathlib import Path

import pytest

from app.serving.choice import Choice, recalled, remember
from app.serving.tryout import Result

CHOICE = Choice(kind="torchscript-f32", tried=(Result(kind="torchscript-f32", seconds={1: 0.001, 2: 0.002}),))


def test_choice_is_recalled(tmp_path: Path) -> None:
    with recalled(tmp_path / "cache" / "version", needed=0) as (folder, choice):
        assert (folder, choice) == (tmp_path / "cache" / "version", None)
        remember(folder, CHOICE, CHOICE.tried)
    with recalled(folder, needed=0) as (again, choice):
        assert (again, choice) == (folder, CHOICE)


def test_damaged_memory_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "choice.json").write_text("{")
    with recalled(tmp_path, needed=0) as (folder, choice):
        assert (folder, choice) == (tmp_path, None)
    assert "is chosen anew" in caplog.text


@pytest.mark.parametrize(
    ("needed", "why"), [(0, "cannot be written"), (10**18, "has no room for the 1000000000000 MB")]
)
def test_folder_that_cannot_be_used_is_replaced_by_one_for_a_while(
    needed: int, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not needed:
        (tmp_path / "cache").write_text("a file is in the way")
    with recalled(tmp_path / "cache" / "version", needed) as (folder, choice):
        assert choice is None
        assert tmp_path not in folder.parents
        (folder / "network").write_bytes(b"weights")
    assert not folder.exists()
    assert f"{tmp_path / 'cache'} {why}" in caplog.text


def test_choice_that_cannot_be_kept_is_said_to_be_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "choice.partial").mkdir()
    remember(tmp_path, CHOICE, CHOICE.tried)
    assert "is chosen anew at the next start" in caplog.text
    assert not (tmp_path / "choice.json").exists()
