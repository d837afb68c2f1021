"""Versions are whole or not there, and a changed byte is seen."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training import artifact
from training.artifact import Aliases, DataRecord, Manifest
from training.errors import ArtifactError, InputError


def write_version(models: Path, name: str = "m") -> Path:
    """A version with small stand-in files: hashes and folders are what is tested here."""
    with artifact.new_version(models, name) as folder:
        (folder / artifact.WEIGHTS).write_bytes(b"weights")
        (folder / artifact.SCRIPT).write_bytes(b"script")
        manifest = Manifest(
            name=name,
            version=artifact.next_version(models, name),
            created="2026-01-01T00:00:00+00:00",
            command="",
            architecture="resnet20",
            arguments={},
            classes=("a", "b"),
            input_size=32,
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            temperature=1.0,
            metrics={},
            data=DataRecord(sha256="", counts={}, made_splits=(), seed=0),
            recipe={},
            seed=0,
            libraries={},
            training_seconds=1.0,
            machine="",
            precision="float32",
            files=artifact.record_files(folder),
        )
        artifact.write_manifest(folder, manifest)
    return artifact.folder(models, name, manifest.version)


def test_versions_count_up_and_verify(tmp_path: Path) -> None:
    assert [int(write_version(tmp_path).name) for _ in range(3)] == [1, 2, 3]
    assert artifact.versions(tmp_path, "m") == [1, 2, 3]
    assert artifact.verify(tmp_path / "m" / "2").version == 2
    assert artifact.names(tmp_path) == ["m"]


def test_the_number_of_a_deleted_version_is_not_given_again(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = write_version(tmp_path)
        artifact.write_aliases(tmp_path, "m", Aliases(production=number, history=(number,)))
    shutil.rmtree(folder)
    assert write_version(tmp_path).name == "3"
    artifact.write_aliases(tmp_path, "m", Aliases(production=1, history=(3, 1)))
    shutil.rmtree(tmp_path / "m" / "3")
    assert write_version(tmp_path).name == "4"


def test_an_unreadable_trial_keeps_no_version_from_being_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(tmp_path)
    (tmp_path / "m" / artifact.CANARY).write_text("{")
    assert write_version(tmp_path).name == "2"
    assert "canary.json cannot be read" in caplog.text


@pytest.mark.parametrize("copy", ["copy/1", "m/2"])
def test_a_copy_under_another_name_or_number_is_refused(tmp_path: Path, copy: str) -> None:
    shutil.copytree(write_version(tmp_path), tmp_path / copy)
    with pytest.raises(ArtifactError, match=f"{copy} holds the manifest of m version 1; .* remove it"):
        artifact.verify(tmp_path / copy)


@pytest.mark.parametrize("name", [artifact.WEIGHTS, artifact.SCRIPT])
def test_a_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    file = write_version(tmp_path) / name
    whole = bytearray(file.read_bytes())
    whole[0] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ArtifactError, match="was changed"):
        artifact.verify(file.parent)
    file.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.verify(file.parent)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "m"}'])
def test_an_unreadable_manifest_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_version(tmp_path)
    (folder / artifact.MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="not a valid manifest"):
        artifact.verify(folder)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = write_version(tmp_path)
    (tmp_path / "secret").write_bytes(b"weights")
    manifest = artifact.read_manifest(folder)
    files = {**manifest.files, "../../secret": manifest.files[artifact.WEIGHTS]}
    artifact.write_manifest(folder, manifest.model_copy(update={"files": files}))
    with pytest.raises(ArtifactError, match="outside its folder"):
        artifact.verify(folder)


def test_a_disk_that_fills_up_leaves_the_old_version(tmp_path: Path) -> None:
    write_version(tmp_path)
    with pytest.raises(ArtifactError, match="No space left"), artifact.new_version(tmp_path, "m") as folder:
        (folder / artifact.WEIGHTS).write_bytes(b"half")
        Path("/dev/full").write_bytes(b"x")
    assert artifact.versions(tmp_path, "m") == [1]
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]


def test_a_killed_writer_leaves_no_version(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from training import artifact\n"
        f"with artifact.new_version(Path({str(tmp_path)!r}), 'm') as folder:\n"
        "    (folder / artifact.WEIGHTS).write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert artifact.versions(tmp_path, "m") == []
    assert artifact.names(tmp_path) == []
    assert list((tmp_path / "m").iterdir())
    assert write_version(tmp_path).name == "1"
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]


def test_a_writer_at_work_is_left_alone_by_another(tmp_path: Path) -> None:
    with artifact.new_version(tmp_path, "m") as folder:
        assert write_version(tmp_path).name == "1"
        assert list(folder.iterdir()) == []
        (folder / artifact.MANIFEST).write_text((tmp_path / "m" / "1" / artifact.MANIFEST).read_text())
        artifact.write_manifest(folder, artifact.read_manifest(folder).model_copy(update={"version": 2}))
    assert artifact.versions(tmp_path, "m") == [1, 2]


def test_aliases_are_kept_and_default_to_none(tmp_path: Path) -> None:
    write_version(tmp_path)
    assert artifact.read_aliases(tmp_path, "m") == Aliases()
    artifact.write_aliases(tmp_path, "m", Aliases(production=1, history=(1,)))
    assert artifact.read_aliases(tmp_path, "m") == Aliases(production=1, history=(1,))
    (tmp_path / "m" / artifact.ALIASES).write_text("{")
    with pytest.raises(ArtifactError):
        artifact.read_aliases(tmp_path, "m")


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "Upper", "a b", "x" * 65])
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be a model's name"):
        artifact.check_name(name)
