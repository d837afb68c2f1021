"""The model that comes with the repository, on the real test pictures, from the command line and over HTTP."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import pytest

from tests.app.process import Server, serve
from training import artifact

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
BATCH = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(MODELS, data_dir=tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(cifar10_archive: Path) -> list[tuple[str, bytes]]:
    """Class name and encoded picture of every test picture."""
    with tarfile.open(cifar10_archive) as archive:
        members = [item for item in archive if item.isfile() and "/test/" in item.name]
        read = [(Path(item.name).parent.name, archive.extractfile(item)) for item in members]
        return [(label, file.read()) for label, file in read if file]


def test_it_is_whole_and_small_enough_to_be_committed() -> None:
    manifest = artifact.verify(artifact.folder(MODELS, "cifar10", 1))
    assert sum(record.size for record in manifest.files.values()) <= 24e6
    assert manifest.metrics["test"]["count"] == 10_000
    assert artifact.read_aliases(MODELS, "cifar10").production == 1


def test_a_picture_of_each_class_is_recognised(server: Server, pictures: list[tuple[str, bytes]]) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for label in sorted({label for label, _ in pictures}):
            five = islice((data for name, data in pictures if name == label), 5)
            answers = client.post("/predict", files=[("file", data) for data in five]).json()["predictions"]
            assert [answer["label"] for answer in answers].count(label) >= 3


@pytest.mark.timeout(900)  # 20,000 pictures take minutes on a processor without AVX-512
def test_the_recorded_accuracy_comes_out_of_the_command_line_and_over_http(
    server: Server, pictures: list[tuple[str, bytes]], cifar10_archive: Path
) -> None:
    recorded = artifact.read_manifest(artifact.folder(MODELS, "cifar10", 1)).metrics["test"]["accuracy"]
    command = [
        sys.executable,
        "-m",
        "training",
        "evaluate",
        "--model",
        "cifar10",
        "--data",
        str(cifar10_archive),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["accuracy"] == recorded
    right = 0
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            answer = client.post("/predict?top_k=1", files=[("file", data) for _, data in batch])
            assert answer.status_code == 200, answer.text
            got = [prediction["label"] for prediction in answer.json()["predictions"]]
            right += sum(label == truth for label, (truth, _) in zip(got, batch, strict=True))
    assert len(pictures) == 10_000
    # Batches of another size add up in another order: a picture on the very edge may fall to the other side.
    assert abs(right / len(pictures) - recorded) <= 2e-4
