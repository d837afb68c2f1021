"""Whole fine-tunes: a model and a few pictures in, a verified artifact out."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.photos import write_photos
from tests.training.shapes import write_shapes
from tests.training.sources import classes, make, png
from training import artifact, data, recipe, replay, resnet, run, scoring
from training.artifact import Manifest
from training.base import Base
from training.data import Dataset, Partition, Split
from training.errors import ArtifactError, InputError, TrainingError
from training.finetune import FinetuneJob, _partition, finetune
from training.lineage import lineage, partition
from training.replay import REPLAY, Memory
from training.sink import Epoch, Step
from training.split import repeating

ROOT = Path(__file__).resolve().parents[2]
NETWORK = (
    "network.architecture='fast_resnet'",
    "network.arguments={widths=[8, 16, 16]}",
    "network.input_size=32",
    "epochs=12",
    "batch_size=16",
    "optimizer.learning_rate=0.01",
)


class Kept:
    def __init__(self) -> None:
        self.epochs: list[Epoch] = []

    def step(self, step: Step) -> None:
        """Steps are not kept."""

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)


class Greedy(Kept):
    """Wants more memory than there is."""

    def epoch(self, epoch: Epoch) -> None:
        bytearray(epoch.epoch << 60)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A folder with the model `shapes`, which tells discs from crosses."""
    folder = tmp_path_factory.mktemp("models")
    chosen = recipe.load("small-data", NETWORK)
    manifest = run.train(run.Job(chosen, str(shapes), "shapes", folder, device="cpu"))
    assert manifest.metrics["test"]["accuracy"] >= 0.9
    return folder


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class that the model does not know."""
    return write_shapes(tmp_path_factory.mktemp("data") / "rings", kinds=["ring"])


def job(models: Path, source: Path, name: str, **values: Any) -> FinetuneJob:
    return FinetuneJob("shapes", str(source), name, models, device="cpu", **values)


def weights(models: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(artifact.folder(models, name, 1) / artifact.WEIGHTS)


def card(models: Path, name: str) -> str:
    return (artifact.folder(models, name, 1) / "report" / "card.md").read_text()


def test_a_fine_tune_that_needs_too_much_memory_says_what_to_change(models: Path, shapes: Path) -> None:
    with pytest.raises(TrainingError, match=r"Memory ran out\. Lower batch_size, now 8\."):
        finetune(job(models, shapes, "greedy", batch_size=8), [Greedy()])
    assert not artifact.versions(models, "greedy")


def test_the_same_classes_keep_their_head_and_learn_from_new_pictures(models: Path, tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "more", count=20, first=1000)
    kept = Kept()
    manifest = finetune(job(models, source, "same", epochs=3), [kept])
    assert artifact.verify(artifact.folder(models, "same", 1)) == manifest
    assert manifest.parent == "shapes@1"
    assert manifest.classes == ("cross", "disc")
    assert [epoch.epoch for epoch in kept.epochs] == [1, 2, 3]
    assert manifest.finetune
    assert (manifest.finetune["method"], manifest.finetune["classes"]) == ("full", "keep")
    best = max(kept.epochs, key=lambda epoch: (epoch.val_macro_f1, -epoch.val_loss))
    assert manifest.finetune["best_epoch"] == best.epoch
    forgetting = manifest.metrics["forgetting"]
    base = artifact.read_manifest(artifact.folder(models, "shapes", 1))
    assert forgetting["count"] == base.data.counts["test"]
    assert forgetting["before"] == pytest.approx(base.metrics["test"]["accuracy"])
    # Of the 8 pictures that the seed holds out, one is like a picture that the base was trained on.
    assert manifest.metrics["test"]["count"] == 7
    assert manifest.metrics["cross_validation"]["folds"] == 5
    assert "| forgotten |" in card(models, "same")
    assert not (run.runs_folder(models, "same") / "checkpoint.pt").exists()


@pytest.mark.parametrize("method", ["head", "full", "lora"])
def test_other_classes_get_another_head_by_every_method(models: Path, tmp_path: Path, method: Any) -> None:
    source = write_shapes(tmp_path / "rings", count=40, kinds=["cross", "ring"], first=2000)
    manifest = finetune(job(models, source, method, method=method, epochs=4))
    assert manifest.classes == ("cross", "ring")
    assert manifest.metrics["forgetting"] == {"classes": "replace", "dropped": ["disc"]}
    before, after = weights(models, "shapes"), weights(models, method)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "head.weight" in changed
    unfrozen = changed - {"head.weight"}
    if method == "head" or manifest.finetune["best_epoch"] == 1:  # type: ignore[index]
        assert unfrozen == set()
    elif method == "lora":
        assert unfrozen <= {name for name in before if "conv" in name}
    assert not any("running" in name or "whiten" in name for name in unfrozen)
    assert "no longer known | disc" in card(models, method)


def test_larger_pictures_are_seen_at_two_scales_and_the_weights_are_what_is_served(
    models: Path, tmp_path: Path
) -> None:
    source = write_shapes(tmp_path / "large", count=20, kinds=["cross", "ring"], size=90)
    manifest = finetune(job(models, source, "large", epochs=2))
    assert manifest.input_size == 64
    assert manifest.arguments["levels"] == 2
    network = Base.read(models, "large").network()
    assert resnet.build(manifest.architecture, 2, manifest.arguments).state_dict().keys() == network.state_dict().keys()
    again = finetune(FinetuneJob("large", str(source), "larger", models, device="cpu", method="head"))
    assert again.parent == "large@1"
    assert again.input_size == 64


def test_an_added_class_is_learned_and_the_old_ones_stay(
    models: Path, rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path))  # only what is stored with the base is left of its data
    manifest = finetune(job(models, rings, "three", classes="add"))
    assert manifest.classes == ("cross", "disc", "ring")
    assert manifest.finetune
    assert (manifest.finetune["classes"], manifest.finetune["replayed_from"]) == ("add", "pictures stored with it")
    test = manifest.metrics["test"]
    assert test["per_class"]["ring"]["count"] == 12
    assert test["per_class"]["disc"]["count"] == manifest.metrics["forgetting"]["count"] // 2
    assert test["per_class"]["ring"]["recall"] >= 0.5
    assert manifest.metrics["forgetting"]["after"] >= 0.7
    base, after = weights(models, "shapes"), weights(models, "three")
    torch.testing.assert_close(after["head.weight"][:2], base["head.weight"], rtol=1e-3, atol=1e-3)
    images = load_file(artifact.folder(models, "three", 1) / REPLAY)
    assert images["pool.labels"].unique().tolist() == [0, 1, 2]


def test_an_added_class_can_be_trained_through_with_distillation(models: Path, rings: Path) -> None:
    manifest = finetune(job(models, rings, "through", classes="add", method="full", epochs=3))
    assert manifest.finetune
    assert manifest.finetune["epochs"] == 3
    assert manifest.metrics["forgetting"]["after"] >= 0.7


def test_a_class_cannot_be_added_to_a_base_of_which_no_picture_is_left(
    tmp_path: Path, shapes: Path, rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe.load("resnet20", ["network.arguments={width=8}", "epochs=1", "batch_size=16", "replay=0"])
    run.train(run.Job(chosen, str(shapes), "shapes", tmp_path, device="cpu"))
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="--base-data"):
        finetune(job(tmp_path, rings, "three", classes="add"))
    named = finetune(job(tmp_path, rings, "three", classes="add", base_data=str(shapes)))
    assert named.classes == ("cross", "disc", "ring")


def test_what_a_sink_raises_ends_the_run_and_resuming_completes_it(models: Path, shapes: Path, tmp_path: Path) -> None:
    class CancelledError(Exception):
        pass

    class Cancel(Kept):
        def epoch(self, epoch: Epoch) -> None:
            super().epoch(epoch)
            if epoch.epoch == 2:
                raise CancelledError

    whole, first, second = Kept(), Cancel(), Kept()
    finetune(job(models, shapes, "whole", epochs=4), [whole])
    with pytest.raises(CancelledError):
        finetune(job(models, shapes, "cancelled", epochs=4), [first])
    assert artifact.versions(models, "cancelled") == []
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        finetune(job(models, shapes, "cancelled", epochs=4, seed=1), resume=True)
    finetune(job(models, shapes, "cancelled", epochs=4), [second], resume=True)

    def figures(kept: Kept) -> list[tuple[float, ...]]:
        return [(epoch.loss, epoch.val_loss, epoch.val_macro_f1) for epoch in kept.epochs]

    assert figures(second) == figures(whole)
    ours, theirs = weights(models, "whole"), weights(models, "cancelled")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_argument_that_does_not_fit_is_named(models: Path, shapes: Path, rings: Path) -> None:
    with pytest.raises(InputError, match="no model 'none'"):
        finetune(FinetuneJob("none", str(shapes), "x", models))
    with pytest.raises(InputError, match="only one class"):
        finetune(job(models, rings, "x"))
    with pytest.raises(InputError, match="no interrupted run"):
        finetune(job(models, shapes, "x", method="head"), resume=True)


def test_a_base_that_was_changed_is_refused(models: Path, shapes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shapes" / "1"
    copy.parent.mkdir()
    subprocess.run(["cp", "-r", str(artifact.folder(models, "shapes", 1)), str(copy)], check=True)
    stored = bytearray((copy / artifact.WEIGHTS).read_bytes())
    stored[-1] ^= 1
    (copy / artifact.WEIGHTS).write_bytes(stored)
    with pytest.raises(ArtifactError, match="was changed"):
        finetune(FinetuneJob("shapes@1", str(shapes), "x", tmp_path))


def training(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "training", *map(str, arguments)]


def test_a_killed_run_goes_on_from_the_command_line_as_if_it_had_not_been(
    models: Path, shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "shapes").symlink_to(models / "shapes")
    options = ("--data", shapes, "--models", tmp_path, "--epochs", "4", "--device", "cpu")
    arguments = ("finetune", "--base", "shapes@1", "--name", "killed", *options)
    with subprocess.Popen(training(*arguments), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "epoch   2/4" in line:
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("".join(seen))
    for name, extra in (("killed", ("--resume",)), ("whole", ())):
        done = subprocess.run(
            training("finetune", "--base", "shapes@1", "--name", name, *options, *extra),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "300"},
        )
        assert done.returncode == 0, done.stderr
        assert f"{name} version 1" in done.stdout
        assert "fine-tuned from shapes@1" in done.stdout
    killed, whole = (artifact.read_manifest(artifact.folder(tmp_path, name, 1)) for name in ("killed", "whole"))
    assert killed.files[artifact.WEIGHTS] == whole.files[artifact.WEIGHTS]
    assert killed.metrics == whole.metrics
    lines = (run.runs_folder(tmp_path, "killed") / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_the_default_model_is_adapted_to_photos_of_two_classes(cifar10_archive: Path, tmp_path: Path) -> None:
    source = write_photos(cifar10_archive, tmp_path / "source", {"ship": (0, 60), "horse": (0, 30)})
    (tmp_path / "cifar10").symlink_to(ROOT / "models" / "cifar10")
    kept = Kept()
    wanted = FinetuneJob("cifar10", str(source), "photos", tmp_path, device="cpu", epochs=3, input_size=64)
    manifest = finetune(wanted, [kept])
    assert manifest.recipe["class_weights"] == "balanced"
    assert manifest.metrics["test"]["accuracy"] >= 0.9
    assert kept.epochs[0].val_accuracy >= 0.8
    assert data.load(str(source), 64).sha256 == manifest.data.sha256
    assert sum(record.size for record in manifest.files.values()) <= 24e6


BASE = classes({"cat": 30, "dog": 30})
NEW = {
    f"{name}/new{number}.png": png(1000 + 100 * place + number)
    for place, name in enumerate(("cat", "dog"))
    for number in range(6)
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A folder with the model `drawn` of pictures none of which repeats another, and its manifest."""
    models, source = (tmp_path_factory.mktemp(name) for name in ("models", "drawn"))
    chosen = recipe.load("resnet20", ["network.arguments={width=8}", "epochs=1", "batch_size=16"])
    return models, run.train(run.Job(chosen, str(make(source, "folder", BASE)), "drawn", models, device="cpu"))


def cut(
    models: Path, base: Manifest, source: Path, seed: int, memory: Memory | None
) -> tuple[Dataset, Partition, Memory | None, str | None]:
    """A source as a fine-tune of the base would cut it."""
    wanted = FinetuneJob(f"{base.name}@{base.version}", str(source), "x", models, seed=seed)
    dataset = data.load(str(source), base.input_size)
    names = base.classes if memory else dataset.classes
    return dataset, *_partition(dataset.labelled(names), wanted, base, memory)


def trained_with(models: Path, manifest: Manifest) -> Partition:
    return next(lineage(models, manifest))[1]


def repeats(split: Split, *others: Split) -> int:
    """How many pictures of the split repeat ones of the others."""
    return sum(int(repeating(split.images, other.images).sum()) for other in others)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("cached", [True, False])
def test_an_update_with_the_same_pictures_and_a_few_new_ones_holds_out_what_the_base_did(
    drawn: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, cached: bool
) -> None:
    models, base = drawn
    before = trained_with(models, base)
    if not cached:
        monkeypatch.setenv("REFIT_CACHE", str(tmp_path / "cache"))
    memory = replay.recall(artifact.folder(models, "drawn", 1), base)
    _, parts, rest, places = cut(models, base, make(tmp_path, "folder", BASE | NEW), seed, memory)
    assert rest
    assert places
    assert len(parts.train) + len(parts.validation) + len(parts.test) == len(BASE | NEW)  # none is there twice
    assert repeats(parts.test, parts.train, parts.validation) == repeats(parts.validation, parts.train) == 0
    assert repeats(rest.test, parts.train, parts.validation) == 0
    if cached:
        assert repeats(parts.test, before.train, before.validation) == repeats(parts.validation, before.train) == 0
        assert repeats(before.test, parts.test) == len(before.test) == len(rest.test)
        assert len(parts.test) > len(before.test)  # some of the new ones
    else:  # of what the base was trained on, the stored pictures are known
        assert memory
        assert repeats(memory.pool, parts.train) == len(memory.pool)
        assert repeats(memory.test, parts.test) == len(memory.test)


def test_other_pictures_are_cut_by_the_seed_and_the_remembered_ones_join_them(
    drawn: tuple[Path, Manifest], tmp_path: Path
) -> None:
    models, base = drawn
    memory = replay.recall(artifact.folder(models, "drawn", 1), base)
    assert memory
    dataset, parts, rest, places = cut(models, base, make(tmp_path, "folder", NEW), 3, memory)
    own = data.partition(dataset, 2500, 3)
    assert rest
    assert places is None
    assert parts.test.names == own.test.names
    assert (len(rest.pool), len(rest.test)) == (len(memory.pool), len(memory.test))
    assert len(parts.train) + len(parts.validation) == len(own.train) + len(own.validation) + len(memory.pool)
    assert len(parts.train.clusters.unique()) == len(parts.train)


def test_a_chain_of_updates_keeps_its_splits_and_scores_them(drawn: tuple[Path, Manifest], tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(drawn[0], models)
    source = make(tmp_path, "folder", BASE | NEW)
    options = {"method": "head", "device": "cpu", "seed": 5}
    second = finetune(FinetuneJob("drawn@1", str(source), "drawn", models, **options))  # type: ignore[arg-type]
    first, after = (trained_with(models, manifest) for manifest in (drawn[1], second))
    assert second.finetune
    assert second.finetune["replayed"] == 0
    assert second.data.counts["test"] == len(after.test)
    assert repeats(after.test, first.train, first.validation) == 0
    found = scoring.score(models, "drawn@2", str(source), "test")
    assert (found["count"], found["accuracy"]) == (len(after.test), second.metrics["test"]["accuracy"])
    (source / "cat" / "third.png").write_bytes(png(5000))
    memory = replay.recall(artifact.folder(models, "drawn", 2), second)
    _, parts, rest, _ = cut(models, second, source, 6, memory)
    assert rest
    assert repeats(after.test, parts.test) == len(after.test)
    assert repeats(rest.test, after.test) == len(rest.test)
    assert repeats(after.validation, parts.validation) == len(after.validation)


def test_only_pictures_that_the_base_was_trained_on_are_tested_with_remembered_ones(
    drawn: tuple[Path, Manifest], tmp_path: Path
) -> None:
    models, base = drawn
    before = trained_with(models, base)
    known = {name: BASE[name] for name in before.train.names}
    memory = replay.recall(artifact.folder(models, "drawn", 1), base)
    _, parts, _, _ = cut(models, base, make(tmp_path, "folder", known), 0, memory)
    assert repeats(parts.train, before.train) >= len(known)
    assert repeats(parts.test, before.train, before.validation) == 0
    assert len(parts.test) == len(before.test)
    assert len(parts.validation) > 0


def test_classes_that_the_base_s_splits_leave_without_test_pictures_are_split_anew(
    drawn: tuple[Path, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models, base = drawn
    known = {name.replace("cat", "lynx"): BASE[name] for name in trained_with(models, base).train.names}
    source = make(tmp_path, "folder", known)
    dataset, parts, _, _ = cut(models, base, source, 0, None)
    assert "of ['dog', 'lynx'] that its splits would leave one without any" in caplog.text
    assert parts.test.names == data.partition(dataset, 2500, 0).test.names
    assert repeats(parts.test, parts.train, parts.validation) == 0


def test_a_test_split_that_the_source_brings_stays_and_is_not_trained_on(
    drawn: tuple[Path, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models, base = drawn
    held = dict(list(BASE.items())[10:50])  # of both classes
    files = {f"train/{name}": content for name, content in (BASE | NEW).items()}
    source = make(tmp_path, "folder", files | {f"test/{name}": content for name, content in held.items()})
    memory = replay.recall(artifact.folder(models, "drawn", 1), base)
    with caplog.at_level(logging.INFO):
        dataset, parts, rest, places = cut(models, base, source, 0, memory)
    assert rest
    assert parts.test.names == dataset.splits["test"].names
    assert repeats(parts.test, parts.train, parts.validation) == 0
    assert repeats(parts.validation, parts.train) == 0
    assert repeats(rest.test, parts.train, parts.validation) == 0
    assert "of the training split are left out" in caplog.text
    assert "the base was trained on pictures of the source's test split" in caplog.text
    made = base.model_copy(update={"data": base.data.model_copy(update={"seed": 0, "places": places})})
    assert repeats(partition(made, dataset).train, parts.test) == 0
