"""The splits that a version was trained with are found again by whoever makes another one of it, or judges it."""

from pathlib import Path

import pytest

from tests.training.sources import classes, make, png
from training import artifact, compare, data, recipe, replay, run
from training.artifact import Manifest
from training.finetune import FinetuneJob, finetune
from training.lineage import NOWHERE, TEST, TRAIN, lineage, partition, places
from training.pruning import Pruning, prune
from training.quantisation import Quantisation, quantise

NEW = {
    f"{name}/new{number}.png": png(1000 * place + number)
    for place, name in enumerate(("cat", "dog"), 1)
    for number in range(6)
}


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    """A folder with two versions of the model `drawn`, the data of the second one, and its manifest."""
    models, first, second = (tmp_path_factory.mktemp(name) for name in ("models", "first", "second"))
    files = classes({"cat": 30, "dog": 30})
    before, after = make(first, "folder", files), make(second, "folder", files | NEW)
    chosen = recipe.load(
        "small-data",
        [
            "network.architecture='fast_resnet'",
            "network.arguments={widths=[16, 16, 16]}",
            "network.input_size=32",
            "epochs=2",
            "batch_size=16",
        ],
    )
    run.train(run.Job(chosen, str(before), "drawn", models, device="cpu"))
    return models, after, finetune(FinetuneJob("drawn@1", str(after), "drawn", models, seed=1, device="cpu", epochs=2))


def test_pictures_are_where_the_manifest_says(updated: tuple[Path, Path, Manifest]) -> None:
    _, source, manifest = updated
    dataset = data.load(str(source), manifest.input_size)
    parts = partition(manifest, dataset)
    where = places(dataset, parts).tolist()
    assert "".join(map(str, where)) == manifest.data.places
    first, second, third = (where.index(place) for place in (TRAIN, TEST, TEST))
    third = where.index(TEST, second + 1)
    where[first], where[second], where[third] = TEST, TRAIN, NOWHERE
    record = manifest.data.model_copy(update={"places": "".join(map(str, where))})
    moved = partition(manifest.model_copy(update={"data": record}), dataset)
    names = dataset.splits["train"].names
    assert names[first] in moved.test.names
    assert names[second] in moved.train.names
    assert not any(names[third] in split.names for split in (moved.train, moved.validation, moved.test))


def test_versions_before_are_followed_until_one_is_gone(updated: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    models, _, manifest = updated
    found = list(lineage(models, manifest))
    assert [version.version for version, _ in found] == [2, 1]
    assert set(found[1][1].test.names) <= set(found[0][1].test.names)
    assert [version.version for version, _ in lineage(tmp_path, manifest)] == [2]


def test_what_is_made_of_a_version_keeps_its_splits(updated: tuple[Path, Path, Manifest]) -> None:
    models, source, manifest = updated
    assert manifest.data.places
    for made in (
        quantise(Quantisation("drawn@2", str(source), models)),
        prune(Pruning("drawn@2", str(source), models, keep=0.5, epochs=1, device="cpu")),
    ):
        assert made.data.places == manifest.data.places
        assert made.data.counts["test"] == manifest.data.counts["test"]


def test_what_judges_or_remembers_a_version_goes_by_its_splits(updated: tuple[Path, Path, Manifest]) -> None:
    models, source, manifest = updated
    parts = partition(manifest, data.load(str(source), manifest.input_size))
    memory = replay.recall(artifact.folder(models, "drawn", 2), manifest)
    assert memory
    assert memory.test.names == parts.test.names
    assert set(memory.pool.names) <= set(parts.train.names + parts.validation.names)
    known = compare._read(manifest, source)
    assert len(known.test.labels) == len(parts.test)
    assert len(known.seen) == len(parts.train) + len(parts.validation)
