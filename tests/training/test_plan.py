"""What a fine-tune decides from its data, and that each decision can be overridden."""

from pathlib import Path
from typing import Any

import pytest
import torch

from training import artifact
from training.artifact import Manifest
from training.data import Survey
from training.errors import InputError
from training.finetune import FinetuneJob
from training.plan import Plan, make_plan, make_recipe

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="module")
def base() -> Manifest:
    """The model that comes with the repository."""
    return artifact.read_manifest(artifact.folder(MODELS, "cifar10", 1))


def wishes(**values: Any) -> FinetuneJob:
    return FinetuneJob(base="cifar10", source="data", name="new", models=MODELS, **values)


def plan(base: Manifest, count: int = 360, side: int = 150, device: str = "cpu", **values: Any) -> Plan:
    return make_plan(wishes(**values), base, Survey(("oak", "pine"), count, side), device)


@pytest.mark.parametrize(
    ("count", "side", "size"),
    [
        (360, 32, 32),
        (360, 63, 32),
        (360, 64, 64),
        (360, 150, 64),
        (360, 4000, 64),
        (1500, 4000, 64),
        (50_000, 4000, 32),
    ],
)
def test_the_input_grows_with_the_pictures_within_a_budget(base: Manifest, count: int, side: int, size: int) -> None:
    found = plan(base, count, side)
    assert found.input_size == size
    assert found.levels == {32: 1, 64: 2}[size]


def test_a_gpu_affords_larger_inputs(base: Manifest) -> None:
    assert plan(base, device="cuda").input_size == 128
    assert plan(base, side=4000, device="cuda").input_size == 256


def test_an_input_size_can_be_named_if_it_fits(base: Manifest) -> None:
    assert plan(base, input_size=128) == Plan("replace", ("oak", "pine"), "full", 3, 128)
    with pytest.raises(InputError, match="Use one of"):
        plan(base, input_size=96)
    with pytest.raises(InputError, match="keeps its input size"):
        plan(base, input_size=64, classes="add")


def test_classes_decide_what_becomes_of_the_head(base: Manifest) -> None:
    same = Survey(tuple(reversed(base.classes)), 360, 150)
    kept = make_plan(wishes(), base, same, "cpu")
    assert (kept.fate, kept.classes, kept.method, kept.input_size) == ("keep", base.classes, "full", 32)
    assert make_plan(wishes(classes="replace"), base, same, "cpu").fate == "replace"
    assert plan(base).classes == ("oak", "pine")
    added = plan(base, classes="add")
    assert (added.fate, added.classes, added.method) == ("add", (*base.classes, "oak", "pine"), "head")
    part = Survey(("cat", "ant"), 360, 150)
    assert make_plan(wishes(classes="add"), base, part, "cpu").classes == (*base.classes, "ant")
    assert make_plan(wishes(classes="add"), base, Survey(("cat",), 9, 150), "cpu").fate == "keep"


def test_a_second_fine_tune_starts_from_the_size_that_the_features_are_of(base: Manifest) -> None:
    larger = base.model_copy(update={"arguments": {**base.arguments, "levels": 2}, "input_size": 64})
    assert plan(larger, side=32) == Plan("replace", ("oak", "pine"), "full", 1, 32)
    assert plan(larger, side=150) == Plan("replace", ("oak", "pine"), "full", 2, 64)


def recipe_of(base: Manifest, labels: torch.Tensor, **values: Any) -> Any:
    return make_recipe(wishes(**values), plan(base, len(labels), **values), base, "cifar10@1", labels)


def test_few_pictures_are_shown_often_in_small_batches_and_many_seldom_in_large_ones(base: Manifest) -> None:
    small, large = (recipe_of(base, torch.arange(count) % 2) for count in (230, 20_000))
    assert (small.epochs, small.batch_size) == (31, 16)
    assert (large.epochs, large.batch_size) == (7, 128)
    assert small.network.arguments == base.arguments | {"levels": 2}
    assert recipe_of(base, torch.arange(6) % 2).batch_size == 2


def test_unequal_classes_are_weighed(base: Manifest) -> None:
    assert recipe_of(base, torch.arange(230) % 2).class_weights == "none"
    assert recipe_of(base, (torch.arange(230) % 3).clamp(max=1)).class_weights == "balanced"


def test_wishes_win(base: Manifest) -> None:
    found = recipe_of(base, torch.arange(230) % 2, epochs=4, batch_size=8, learning_rate=0.5, method="lora")
    assert (found.epochs, found.batch_size, found.optimizer.learning_rate) == (4, 8, 0.5)
    assert recipe_of(base, torch.arange(230) % 2, method="head", epochs=9).epochs == 1
