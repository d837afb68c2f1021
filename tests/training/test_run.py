"""Whole runs through the command line: real pictures in, a verified artifact out."""

import dataclasses
import json
import os
import re
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.training.command import FAST, METHODS, command, training
from tests.training.runs import partition
from tests.training.shapes import write_shapes
from training import artifact, evaluate, loop, recipe, run
from training.adversarial import robust_accuracy, strong
from training.distributed import Group
from training.errors import InputError


def weights_hash(models: Path, name: str) -> str:
    return artifact.read_manifest(artifact.folder(models, name, 1)).files[artifact.WEIGHTS].sha256


def losses(models: Path, name: str) -> list[float]:
    lines = (run.runs_folder(models, name) / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_run_writes_every_part_of_the_artifact(models: Path) -> None:
    folder = artifact.folder(models, "shapes", 1)
    manifest = artifact.verify(folder)
    assert manifest.classes == ("cross", "disc")
    assert set(manifest.files) == {
        "weights.safetensors",
        "model.ts",
        "neighbours.safetensors",
        "replay.safetensors",
        "probe.safetensors",
        "report/card.md",
        "report/curves.png",
        "report/confusion.png",
        "report/reliability.png",
    }
    assert manifest.data.made_splits == ("test", "validation")
    assert manifest.metrics["test"]["count"] == manifest.data.counts["test"] == 24
    assert artifact.read_aliases(models, "shapes").production == 1
    assert f"{manifest.metrics['test']['accuracy']:.2%}" in (folder / "report" / "card.md").read_text()
    assert not (run.runs_folder(models, "shapes") / "checkpoint.pt").exists()


def test_one_seed_gives_the_same_losses_and_weights(tmp_path: Path, shapes: Path) -> None:
    for name in ("first", "second"):
        done = training(
            "train", *FAST, "--set", "epochs=2", "--data", shapes, "--name", name, "--models", tmp_path, "--seed", "7"
        )
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path, "first") == losses(tmp_path, "second")
    assert weights_hash(tmp_path, "first") == weights_hash(tmp_path, "second")


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, shapes: Path, models: Path, signal_: signal.Signals
) -> None:
    settings = ("train", *FAST, *METHODS, "--set", "epochs=6", "--data", shapes, "--name", "shapes")
    arguments = (*settings, "--models", str(tmp_path))
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "epoch   2/6" in line:
                process.send_signal(signal_)
                break
        else:
            pytest.fail("".join(seen))
        rest = process.stderr.read()
    assert process.returncode == (1 if signal_ == signal.SIGINT else -signal.SIGKILL)
    assert artifact.versions(tmp_path, "shapes") == []
    if signal_ == signal.SIGINT:
        assert "--resume goes on" in rest
    done = training(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path, "shapes") == losses(models, "shapes")
    assert weights_hash(tmp_path, "shapes") == weights_hash(models, "shapes")


def test_resume_refuses_another_run_and_a_missing_one(tmp_path: Path, shapes: Path) -> None:
    arguments = ("train", *FAST, "--data", shapes, "--name", "shapes", "--models", tmp_path, "--resume")
    done = training(*arguments)
    assert done.returncode == 2
    assert "Leave out --resume" in done.stderr


def test_a_full_disk_fails_the_run_and_leaves_what_was_there(models: Path, shapes: Path) -> None:
    before = artifact.verify(artifact.folder(models, "shapes", 1))

    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    arguments = ("train", *FAST, "--set", "epochs=1", "--data", shapes, "--name", "shapes", "--models", models)
    done = training(*arguments, preexec_fn=allow_small_files_only)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "--resume" in done.stderr
    assert artifact.verify(artifact.folder(models, "shapes", 1)) == before
    assert artifact.versions(models, "shapes") == [1]
    assert not list(models.rglob(".partial-*"))


def test_what_is_interrupted_says_what_is_kept(tmp_path: Path, shapes: Path) -> None:
    asked = ("train", "--recipe", "resnet18", "--device", "cpu", "--data", shapes, "--name", "x", "--models", tmp_path)
    with subprocess.Popen(command(*asked), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        while "training" not in (said := process.stderr.readline()):
            assert said, "the run ended"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 1
    assert "Interrupted. No epoch was finished." in said


def test_a_diverging_run_says_what_to_change(tmp_path: Path, shapes: Path) -> None:
    arguments = ("train", *FAST, "--data", shapes, "--name", "x", "--models", tmp_path)
    done = training(*arguments, "--set", "optimizer.learning_rate=1e12", "--set", "epochs=2")
    assert done.returncode == 1
    assert "Lower optimizer.learning_rate" in done.stderr


def test_a_run_that_needs_too_much_memory_says_what_to_change(tmp_path: Path, shapes: Path) -> None:
    def allow_40_gib() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (40 << 30, 40 << 30))

    # What the stem puts out would take 64 GiB in bfloat16.
    huge = ("network.architecture=resnet", "network.arguments={blocks=[1], width=2048}", "network.input_size=512")
    settings = [part for value in (*huge, "batch_size=64", "validation=4") for part in ("--set", value)]
    arguments = ("train", "--recipe", "resnet20", *settings, "--device", "cpu", "--data", str(shapes), "--name", "x")
    done = training(*arguments, "--set", "epochs=1", "--models", str(tmp_path), preexec_fn=allow_40_gib)
    assert done.returncode == 1
    assert "Memory ran out. Lower batch_size, now 64, or raise accumulate, now 1." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_teacher_is_learned_from_and_one_of_other_classes_refused(tmp_path: Path, models: Path, shapes: Path) -> None:
    arguments = ("train", *FAST, "--set", "epochs=1", "--set", "distillation.teacher=shapes@1", "--models", models)
    done = training(*arguments, "--data", shapes, "--name", "student")
    assert done.returncode == 0, done.stderr
    manifest = artifact.read_manifest(artifact.folder(models, "student", 1))
    assert manifest.recipe["distillation"]["teacher"] == "shapes@1"
    other = write_shapes(tmp_path / "other", count=20)
    (other / "disc").rename(other / "ball")
    done = training(*arguments, "--data", other, "--name", "other")
    assert done.returncode == 2
    assert "was trained on the same classes" in done.stderr


def test_an_adversarial_run_reports_robust_accuracy(tmp_path: Path, shapes: Path) -> None:
    settings = ("--set", "adversarial={radius=2, step=2.5}", "--set", "epochs=1")
    done = training("train", *FAST, *settings, "--data", shapes, "--name", "x", "--models", tmp_path)
    assert done.returncode == 0, done.stderr
    robustness = artifact.read_manifest(artifact.folder(tmp_path, "x", 1)).metrics["robustness"]
    assert robustness["attack"] == {"radius": 2.0, "step": 0.5, "steps": 10}
    assert robustness["count"] == 24
    assert "robust" in done.stderr


def test_an_estimate_reads_the_teacher_that_the_run_would(tmp_path: Path, shapes: Path) -> None:
    settings = ("--set", "distillation.teacher=missing@1", "--estimate")
    done = training("train", *FAST, *settings, "--data", shapes, "--name", "x", "--models", tmp_path)
    assert done.returncode == 2
    assert "There is no model 'missing'" in done.stderr


def job(shapes: Path, folder: Path, *overrides: str) -> run.Job:
    return run.Job(recipe.load("resnet20", overrides), str(shapes), "x", folder, device="cpu")


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (1, 64), (2, 16), (4, 16), (7, 1), (38, 16)])
def test_batches_and_their_parts_are_lowered_to_what_there_is(
    shapes: Path, tmp_path: Path, size: int, accumulate: int
) -> None:
    asked = job(shapes, tmp_path, "batch_size=1024", f"accumulate={accumulate}", "validation=20")
    fitted, _, parts = run.prepare(asked, Group(0, size))
    parts_of_batch = size * fitted.recipe.accumulate
    assert 1 <= fitted.recipe.accumulate <= accumulate
    assert 2 * parts_of_batch <= fitted.recipe.batch_size <= len(parts.train)
    assert fitted.recipe.batch_size % parts_of_batch == 0


def test_more_processes_than_a_step_has_pictures_for_are_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"76 training pictures are too few: each of 50 processes"):
        run.prepare(job(shapes, tmp_path, "batch_size=1000", "validation=20"), Group(0, 50))


def test_a_run_of_fewer_pictures_than_parts_comes_to_its_end(tmp_path: Path) -> None:
    chosen = recipe.load("resnet20", ["network.arguments={width=8}", "epochs=1", "batch_size=64", "accumulate=16"])
    kept = run.fit(chosen, partition(24), ("left", "right"), tmp_path, seed=0, device=torch.device("cpu"))
    assert kept.epoch == 1


@pytest.mark.parametrize("stopping", ["early_stopping={metric='loss', patience=9}", None])
def test_the_figures_of_a_fit_are_those_of_the_network_that_it_ends_with(tmp_path: Path, stopping: str | None) -> None:
    cpu, names = torch.device("cpu"), ("left", "right")
    parts = partition()
    # What is learnt from the training pictures is wrong for these.
    parts = dataclasses.replace(parts, validation=parts.validation.relabelled(torch.tensor([1, 0])))
    settings = ["network.arguments={width=8}", "epochs=6", "batch_size=16", "precision='float32'"]
    chosen = recipe.load("resnet20", [*settings, *filter(None, [stopping])])
    kept = run.fit(chosen, parts, names, tmp_path, seed=0, device=cpu)
    network, normalise = run._start(chosen, parts, names, 0)
    history = loop.train(network, parts, chosen, seed=0, device=cpu, normalise=normalise)
    assert (kept.val_accuracy < history[0].val_accuracy) == (stopping is None)
    assert (kept.val_accuracy > history[-1].val_accuracy) == (stopping is not None)
    left = evaluate.score(network, normalise, parts.validation, cpu, torch.float32)
    assert (kept.val_loss, kept.val_accuracy, kept.val_macro_f1) == (left.loss, left.accuracy, left.macro_f1)


def test_a_fit_that_is_tested_gives_the_test_figures_of_the_network_that_it_ends_with(tmp_path: Path) -> None:
    cpu, names = torch.device("cpu"), ("left", "right")
    parts = partition()
    parts = dataclasses.replace(parts, validation=parts.validation.relabelled(torch.tensor([1, 0])))
    settings = ["network.arguments={width=8}", "epochs=6", "batch_size=16", "precision='float32'"]
    settings += ["early_stopping={metric='loss', patience=9}", "adversarial={radius=2, step=2.5}"]
    chosen = recipe.load("resnet20", settings)
    kept = run.fit(chosen, parts, names, tmp_path, seed=0, device=cpu, tested=True)
    network, normalise = run._start(chosen, parts, names, 0)
    history = loop.train(network, parts, chosen, seed=0, device=cpu, normalise=normalise)
    epoch = min(history, key=lambda epoch: epoch.val_loss)
    assert epoch != history[-1], "the last epoch is the best, or this tests nothing"
    left = evaluate.score(network, normalise, parts.test, cpu, torch.float32)
    robust = robust_accuracy(network, normalise, parts.test, strong(2), seed=0)
    assert kept == dataclasses.replace(
        epoch,
        val_loss=left.loss,
        val_accuracy=left.accuracy,
        val_macro_f1=left.macro_f1,
        val_robust_accuracy=robust,
        seconds=kept.seconds,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "none", "--name", "x", "--data", "DATA"), "There is no recipe 'none'"),
        (("--recipe", "resnet20", "--name", "Big Name", "--data", "DATA"), "cannot be a model's name"),
        (("--recipe", "resnet20", "--name", "x", "--data", "nowhere"), "There is nothing at 'nowhere'"),
        (("--recipe", "resnet20", "--name", "x", "--data", "DATA", "--set", "epochs=no"), "epochs"),
        (("--recipe", "resnet20", "--name", "x", "--data", "DATA", "--set", "network.arguments={depth=3}"), "depth"),
        (("--recipe", "resnet20", "--name", "x", "--data", "DATA", "--set", "nothing=3"), "nothing"),
        (("--recipe", "resnet20", "--data", "DATA"), "--name"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_why(
    tmp_path: Path, shapes: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = [str(shapes) if part == "DATA" else part for part in arguments]
    done = training("train", *given, "--models", tmp_path, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2
    assert said in done.stderr
    assert artifact.names(tmp_path) == []


def test_every_problem_of_the_data_is_named_at_once(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "bad", count=3)
    (folder / "empty").mkdir()
    (folder / "disc" / "0.png").write_bytes(b"no picture")
    (folder / "cross" / "1.png").write_bytes((folder / "cross" / "1.png").read_bytes()[:60])
    done = training("train", *FAST, "--data", folder, "--name", "x", "--models", tmp_path / "models")
    assert done.returncode == 2
    for said in ("disc/0.png", "cross/1.png", "'empty' is empty"):
        assert said in done.stderr


def test_recipes_are_listed_with_what_they_reached() -> None:
    done = training("recipes", env={**os.environ, "COLUMNS": "300"})
    assert done.returncode == 0
    for name in recipe.names():
        assert name in done.stdout
        assert recipe.load(name).reached[:20] in done.stdout


def test_prune_writes_a_smaller_version_that_names_its_parent(shapes: Path, tmp_path: Path) -> None:
    place = ("--data", shapes, "--models", tmp_path, "--device", "cpu")
    wider = ("--set", "network.arguments={width=16}", "--set", "epochs=1")
    assert training("train", *FAST, *wider, "--name", "shapes", *place).returncode == 0
    arguments = ("prune", "--model", "shapes@1", *place)
    done = training(*arguments, "--keep", "0.5", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    wide, pruned = (artifact.verify(artifact.folder(tmp_path, "shapes", number)) for number in (1, 2))
    assert pruned.parent == "shapes@1"
    assert pruned.arguments == {**wide.arguments, "width": 8}
    assert pruned.data == wide.data
    assert pruned.files[artifact.WEIGHTS].size < wide.files[artifact.WEIGHTS].size / 2
    assert artifact.read_aliases(tmp_path, "shapes").production == 1
    assert "pruned from shapes@1 to weights of" in done.stdout
    again = training("prune", "--model", "shapes@2", *place, "--keep", "0.5")
    assert again.returncode == 2
    assert "takes nothing out of shapes@2" in again.stderr


def test_prune_refuses_a_share_that_leaves_nothing_or_all(models: Path, shapes: Path) -> None:
    done = training("prune", "--model", "shapes", "--data", shapes, "--models", models, "--keep", "1.5")
    assert done.returncode == 2
    assert "above 0 and below 1" in done.stderr


def test_an_estimate_writes_nothing(shapes: Path, tmp_path: Path) -> None:
    arguments = ("train", *FAST, "--set", "epochs=6", "--data", shapes, "--name", "shapes", "--models", tmp_path)
    done = training(*arguments, "--estimate")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"About \d+:\d\d for 6 epochs, from a few timed steps\.\n", done.stdout)
    assert not list(tmp_path.iterdir())
