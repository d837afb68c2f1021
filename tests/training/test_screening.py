"""Screening: what is said against an archive before a run. The addresses' own tests cover the rest, over HTTP."""

import zipfile
from pathlib import Path

import pytest

from tests.encoding import encode
from tests.training.sources import Files, add, classes, draw, make, png
from training import data, screening
from training.errors import InputError
from training.preflight import Findings

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tar.xz")


def screen(path: Path, max_files: int = 1000, max_pixels: int = 10**6, least: int = 2) -> Findings:
    found = screening.screen(path, "pets.zip", max_files, max_pixels, least, lambda: False)
    assert found
    return found


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_sound_archive_has_no_errors(tmp_path: Path, kind: str) -> None:
    found = screen(make(tmp_path, kind, classes({"cat": 20, "dog": 20}, "pets/")))
    assert (found.errors, found.warnings, found.classes) == ([], [], ("cat", "dog"))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_problems_of_all_kinds_come_together(tmp_path: Path, kind: str) -> None:
    files = {**classes({"cat": 20, "Cat": 20}), "dog": None, "cat/x.png": b"no picture", "stray.png": png(99)}
    found = screen(make(tmp_path, kind, files))
    errors = "\n".join(found.errors)
    for said in ("'dog' is empty", "differ only in case", "cat/x.png"):
        assert said in errors
    assert "stray.png" in "\n".join(found.warnings)


def test_a_damaged_archive_is_called_as_its_sender_called_it(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", classes({"cat": 3, "dog": 3}))
    path.write_bytes(path.read_bytes()[:-100])
    (error,) = screen(path).errors
    assert "pets.zip" in error
    assert path.name not in error


@pytest.mark.parametrize(("pixels", "accepted"), [(32 * 32, True), (32 * 32 - 1, False)])
def test_pictures_with_too_many_pixels(tmp_path: Path, pixels: int, accepted: bool) -> None:
    found = screen(make(tmp_path, ".zip", classes({"cat": 20, "dog": 20})), max_pixels=pixels)
    assert (found.errors == []) == accepted


@pytest.mark.parametrize(("files", "accepted"), [(40, True), (39, False)])
def test_too_many_files(tmp_path: Path, files: int, accepted: bool) -> None:
    found = screen(make(tmp_path, ".zip", classes({"cat": 20, "dog": 20})), max_files=files)
    assert (found.errors == []) == accepted


def test_one_class_is_enough_to_be_added(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", classes({"cat": 20}))
    assert screen(path).errors != []
    assert screen(path, least=1).errors == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_picture_that_a_zip_holds_twice_is_an_error(tmp_path: Path) -> None:
    path = make(tmp_path, ".zip", classes({"cat": 20, "dog": 20}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dog/5.png", png(99))
    (error,) = screen(path).errors
    assert error.startswith("dog/5.png is in the archive more than once.")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_tar_that_was_added_to_is_judged_by_its_last_files(tmp_path: Path, damaged: bool) -> None:
    before, after = (png(99), png(99)[:100]) if damaged else (png(99)[:100], png(99))
    path = make(tmp_path, ".tar", {**classes({"cat": 20, "dog": 20}), "dog/5.png": before, "stray.png": before})
    add(path, {"dog/5.png": after, "stray.png": after})
    found = screen(path)
    assert len(found.errors) == 2 * damaged
    assert found.errors == problems_of_a_run(path)
    assert "1 pictures lie in no class folder" in found.warnings[0]


def problems_of_a_run(path: Path) -> list[str]:
    """What a run says against an archive."""
    try:
        data.load(str(path), 8)
    except InputError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("listed", [False, True])
def test_a_class_that_holds_only_heic_is_an_error(tmp_path: Path, kind: str, listed: bool) -> None:
    folders: Files = dict.fromkeys(("pets", "pets/cat", "pets/dog", "pets/fish")) if listed else {}
    heic = {f"pets/fish/IMG_{number}.HEIC": b"heic" for number in range(24)}
    found = screen(make(tmp_path, kind, {**folders, **classes({"cat": 20, "dog": 20}, "pets/"), **heic}))
    assert found.errors == [
        "The folder of class 'fish' holds no pictures, only 24 files (.heic) such as pets/fish/IMG_0.HEIC. HEIC cannot "
        "be read: export such pictures as JPEG or PNG. If it is no class, remove it."
    ]


def test_litter_is_passed_over(tmp_path: Path) -> None:
    litter = {"__MACOSX/cat/._1.png": b"x", ".DS_Store": b"x", "cat/.hidden.png": b"x"}
    assert screen(make(tmp_path, ".zip", {**classes({"cat": 20, "dog": 20}), **litter})).errors == []


def test_a_large_archive_is_not_decoded_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, ".zip", {**classes({"cat": 20, "dog": 20}), "cat/x.png": b"no picture"})
    assert screen(path).errors != []
    monkeypatch.setattr(screening, "DECODED_AT_ONCE", 1000)
    assert screen(path).errors == []


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize(("budget", "accepted"), [(4, False), (3, True)])
def test_no_more_pixels_are_decoded_here_than_the_budget_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, budget: int, accepted: bool
) -> None:
    large = {f"cat/large{number}.png": encode(draw(number, 100, 80)) for number in range(3)}
    damaged = {"dog/x.png": encode(draw(9, 100, 80))[:-200]}
    path = make(tmp_path, kind, {**large, **damaged, **classes({"cat": 20, "dog": 20})})
    monkeypatch.setattr(screening, "PIXELS_AT_ONCE", budget * 100 * 80)
    assert (screen(path).errors == []) == accepted


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("looks", [0, 10, 50])
def test_it_stops_between_two_files(tmp_path: Path, kind: str, looks: int) -> None:
    path = make(tmp_path, kind, classes({"cat": 20, "dog": 20}))  # 40 that are listed, then decoded
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > looks

    assert screening.screen(path, "pets.zip", 1000, 10**6, 2, stopped) is None
    assert asked <= looks + 3
