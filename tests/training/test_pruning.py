"""Pruning takes out the weakest filters and wires up the others as they were."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.training.runs import Kept
from training import artifact, pruning, recipe, resnet, run
from training.artifact import Manifest
from training.errors import InputError
from training.finetune import FinetuneJob, finetune
from training.pruning import Pruning, prune
from training.sink import Sink


def network(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """A network with random weights and statistics, in evaluation mode."""
    torch.manual_seed(0)
    made = resnet.build(architecture, 3, arguments).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5)
    return made


def chosen(count: int, of: int) -> Tensor:
    return torch.randperm(of)[:count]


def silence(layers: nn.Module, silent: dict[int, Tensor]) -> None:
    """Make channels carry nothing; `silent` names them by the number of channels that a layer has."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[silent[module.out_channels]] = 0
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.bias.data[silent[module.num_features]] = 0
            module.running_mean[silent[module.num_features]] = 0


@pytest.mark.parametrize(
    "arguments", [{}, {"convolutions": 2}, {"convolutions": 2, "shortcut": False, "whiten_bias": True}], ids=str
)
def test_channels_that_carry_nothing_go_without_effect_fast_resnet(arguments: dict[str, object]) -> None:
    wide = network("fast_resnet", {"widths": [16, 32, 64], **arguments})
    narrow = network("fast_resnet", {"widths": [8, 20, 24], **arguments})
    silence(wide.get_submodule("blocks"), {16: chosen(8, 16), 32: chosen(12, 32), 64: chosen(40, 64)})
    pruning.shrink(wide, narrow)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(narrow(images), wide(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet20"])
def test_channels_that_carry_nothing_go_without_effect_resnet(architecture: str) -> None:
    wide, narrow = network(architecture, {"width": 16}), network(architecture, {"width": 8})
    silent = {16: chosen(8, 16)}
    for width in (16, 32, 64):
        # A shortcut without weights passes its channels on in the middle of twice as many.
        pad = width // 2
        before, after = chosen(pad // 2, pad), chosen(pad // 2, pad) + width + pad
        silent[2 * width] = torch.cat([before, silent[width] + pad, after])
    silence(wide, silent)
    pruning.shrink(wide, narrow)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(narrow(images), wide(images), rtol=1e-4, atol=1e-4)


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be pruned"):
        pruning.shrink(nn.Linear(3, 3), nn.Linear(2, 2))


def train(shapes: Path, models: Path, name: str, *overrides: str) -> Manifest:
    """One epoch of a shallow network that is wide enough to be pruned."""
    shallow = ["network.architecture='resnet'", "network.arguments={block='basic', blocks=[1, 1], width=16}"]
    small = ["epochs=1", "batch_size=16", "validation=20", "precision='float32'"]
    chosen = recipe.load("resnet20", [*shallow, *small, *overrides])
    return run.train(run.Job(chosen, str(shapes), name, models, device="cpu"))


def pruned(shapes: Path, models: Path, name: str, sinks: Sequence[Sink] = ()) -> Manifest:
    return prune(Pruning(f"{name}@1", str(shapes), models, keep=0.5, epochs=1, device="cpu"), sinks)


def batches_measured(models: Path, manifest: Manifest) -> set[int]:
    """How many batches the norms of a version have measured, over all its runs."""
    weights = load_file(artifact.folder(models, manifest.name, manifest.version) / artifact.WEIGHTS)
    return {int(value) for key, value in weights.items() if key.endswith("num_batches_tracked")}


def test_what_a_fine_tune_froze_is_trained_and_measured_anew(shapes: Path, tmp_path: Path) -> None:
    train(shapes, tmp_path, "wide")
    tuned = finetune(FinetuneJob("wide", str(shapes), "tuned", tmp_path, method="full", epochs=2, device="cpu"))
    assert tuned.recipe["freeze"]["statistics"]
    narrow = pruned(shapes, tmp_path, "tuned")
    assert narrow.recipe["freeze"] == {"layers": 0, "statistics": False, "epochs": None}
    assert min(batches_measured(tmp_path, narrow)) > max(batches_measured(tmp_path, tuned))


def test_the_teacher_of_a_version_teaches_the_pruned_one_too(shapes: Path, tmp_path: Path) -> None:
    train(shapes, tmp_path, "teacher", "optimizer.learning_rate=0.05")
    train(shapes, tmp_path, "student", "distillation={teacher='teacher@1', weight=1e4}", "optimizer.learning_rate=1e-6")
    kept = Kept()
    assert pruned(shapes, tmp_path, "student", [kept]).recipe["distillation"]["teacher"] == "teacher@1"
    assert kept.epochs[0].loss > 20 * kept.epochs[0].val_loss  # that of the validation is of the labels alone
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(InputError, match=r"student@1 learned from a teacher.*no model 'teacher'.*Put it back"):
        pruned(shapes, tmp_path, "student")


def test_a_network_of_several_scales_is_refused(shapes: Path, tmp_path: Path) -> None:
    train(shapes, tmp_path, "scales", "network.arguments.levels=2")
    with pytest.raises(InputError, match="cannot be pruned"):
        pruned(shapes, tmp_path, "scales")
