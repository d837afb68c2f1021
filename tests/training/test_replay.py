"""Pictures that are stored with a model, and where else they may come from."""

from pathlib import Path

import pytest
import torch

from tests.training.shapes import write_shapes
from training import artifact, recipe, replay, run
from training.artifact import Manifest
from training.data import Partition, Split
from training.errors import InputError


def split(labels: list[int], first: int, size: int = 16) -> Split:
    """Pictures that can be told apart by the value of their pixels."""
    values = torch.arange(first, first + len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    names = tuple(map(str, range(len(labels))))
    return Split(values.expand(-1, 3, size, size).clone(), torch.tensor(labels), names, torch.arange(len(labels)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> tuple[Path, Manifest]:
    """A model of the shapes, trained for one epoch."""
    models = tmp_path_factory.mktemp("models")
    chosen = recipe.load("resnet20", ["network.arguments={width=8}", "epochs=1", "batch_size=16", "replay=6"])
    manifest = run.train(run.Job(chosen, str(shapes), "shapes", models, device="cpu"))
    return artifact.folder(models, "shapes", 1), manifest


def test_pictures_that_were_not_trained_on_are_stored_first(tmp_path: Path, model: tuple[Path, Manifest]) -> None:
    parts = Partition(split([0, 1] * 20, 0), split([0, 0, 0, 0, 0, 1], 100), split([0, 1] * 10, 200), ())
    replay.store(tmp_path, parts, per_class=6)
    manifest = model[1].model_copy(update={"files": artifact.record_files(tmp_path)})
    unknown = manifest.data.model_copy(update={"sha256": "0" * 64})
    memory = replay.recall(tmp_path, manifest.model_copy(update={"data": unknown}))
    assert memory
    values = memory.pool.images[:, 0, 0, 0].long()
    assert torch.bincount(memory.pool.labels).tolist() == [4, 4]
    assert (values[memory.pool.labels == 0] >= 100).all()
    assert 105 in values[memory.pool.labels == 1].tolist()
    assert torch.bincount(memory.test.labels).tolist() == [2, 2]
    assert (memory.test.images[:, 0, 0, 0] >= 200).all()


def test_what_is_stored_is_bounded_and_can_be_nothing(tmp_path: Path) -> None:
    parts = Partition(split([0, 1] * 60, 0, 128), split([0, 1] * 4, 120, 128), split([0, 1] * 4, 130, 128), ())
    replay.store(tmp_path, parts, per_class=60)
    assert 100_000 < (tmp_path / replay.REPLAY).stat().st_size < 2_100_000
    replay.store(tmp_path / "none", parts, per_class=0)
    assert not (tmp_path / "none").exists()


def test_the_whole_data_is_taken_where_it_is_at_hand(model: tuple[Path, Manifest], shapes: Path) -> None:
    folder, manifest = model
    for source in (None, str(shapes)):  # from the cache, and named
        memory = replay.recall(folder, manifest, source)
        assert memory
        assert "trained on" in memory.origin
        assert len(memory.pool) == manifest.data.counts["train"] + manifest.data.counts["validation"]
        assert len(memory.test) == manifest.data.counts["test"]


def test_stored_pictures_do_without_the_data(
    model: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = model
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path))
    memory = replay.recall(folder, manifest)
    assert memory
    assert (len(memory.pool), len(memory.test)) == (8, 4)
    without = {name: record for name, record in manifest.files.items() if name != replay.REPLAY}
    assert replay.recall(folder, manifest.model_copy(update={"files": without})) is None


def test_other_data_is_refused(model: tuple[Path, Manifest], tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "other", count=10, first=500)
    with pytest.raises(InputError, match="is not the data"):
        replay.recall(*model, source=str(other))


def test_labels_follow_the_order_of_the_base(model: tuple[Path, Manifest], shapes: Path) -> None:
    folder, manifest = model
    turned = manifest.model_copy(update={"classes": tuple(reversed(manifest.classes))})
    memory = replay.recall(folder, turned, str(shapes))
    assert memory
    for name, label in zip(memory.test.names, memory.test.labels.tolist(), strict=True):
        assert name.startswith(f"{turned.classes[label]}/")
