"""Recipes: read, changed, checked."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training import recipe
from training.errors import InputError
from training.recipe import Recipe
from training.resnet import build

MINIMAL = """
description = "a test"
epochs = 2
batch_size = 8
[network]
architecture = "resnet20"
[optimizer]
learning_rate = 0.1
"""


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    """Path of a recipe with nothing but what it has to hold."""
    path = tmp_path / "own.toml"
    path.write_text(MINIMAL)
    return str(path)


@pytest.mark.parametrize("name", recipe.names())
def test_shipped_recipes_are_valid_and_buildable(name: str) -> None:
    found = recipe.load(name)
    assert found.description
    build(found.network.architecture, 3, found.network.arguments)


def test_names_are_those_of_the_files() -> None:
    folder = Path(recipe.__file__).parent / "recipes"
    assert recipe.names() == sorted(path.stem for path in folder.glob("*.toml"))
    assert {"resnet18", "resnet20"} <= set(recipe.names())


def test_defaults(minimal: str) -> None:
    found = recipe.load(minimal)
    assert (found.epochs, found.optimizer.name, found.network.input_size) == (2, "sgd", 32)
    assert found.reached == "not run"
    assert found.low_resolution is None


def test_saved_recipe_is_read_back_the_same() -> None:
    for name in recipe.names():
        found = recipe.load(name)
        assert Recipe.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("epochs=7", "epochs", 7),
        (" epochs = 7", "epochs", 7),
        ("optimizer.learning_rate=0.25", "optimizer.learning_rate", 0.25),
        ("optimizer.learning_rate=1e-2", "optimizer.learning_rate", 0.01),
        ("optimizer.name=adamw", "optimizer.name", "adamw"),
        ("optimizer.name='adamw'", "optimizer.name", "adamw"),
        ("schedule.warmup=0.5", "schedule.warmup", 0.5),
        ("network.arguments.width=8", "network.arguments", {"width": 8}),
        ("network.arguments={ width = 8 }", "network.arguments", {"width": 8}),
        ("description=a=b", "description", "a=b"),
        ("low_resolution={ size = 16, fraction = 0.5 }", "low_resolution.size", 16),
    ],
)
def test_override(minimal: str, override: str, path: str, value: Any) -> None:
    found: Any = recipe.load(minimal, [override])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_later_override_wins(minimal: str) -> None:
    assert recipe.load(minimal, ["epochs=3", "epochs=4"]).epochs == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs", "is not of the form key=value"),
        ("epochs=", "epochs: "),
        ("epochs=many", "epochs: "),
        ("epochs=0", "epochs: "),
        ("epochs=1.5", "epochs: "),
        ("=3", "Extra inputs"),
        ("speed=3", "speed: Extra inputs"),
        ("optimizer.speed=3", "optimizer.speed: Extra inputs"),
        ("epochs.more=3", "'epochs' is a value, not a section"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate: "),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate: "),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: "),
        ("optimizer.momentum=1", "optimizer.momentum: "),
        ("optimizer.name=lion", "optimizer.name: "),
        ("schedule.shape=wavy", "schedule.shape: "),
        ("schedule.warmup=1", "schedule.warmup: "),
        ("label_smoothing=1", "label_smoothing: "),
        ("batch_size=1", "batch_size: "),
        ("augment.crop_padding=32", "augment.crop_padding has to be less than network.input_size, 32"),
        ("low_resolution={ size = 32, fraction = 0.5 }", "low_resolution.size has to be less than"),
        ("low_resolution={ size = 16, fraction = 1.5 }", "low_resolution.fraction: "),
        ("low_resolution={ size = 16, fraction = 0.5, grow_to = 32 }", "low_resolution.size has to be less than"),
        ("low_resolution={ size = 20, fraction = 0.5, grow_to = 16 }", "low_resolution.size has to be less than"),
        ("network.input_size=8", "network.input_size: "),
        ("network=3", "network: "),
        ("schedule.shape=step", "schedule.milestones and schedule.shape='step' need each other"),
        ("schedule.shape=one-cycle", "needs schedule.warmup"),
        ("accumulate=3", "batch_size has to be a multiple of accumulate"),
        ("accumulate=8", "batch_size has to be a multiple of accumulate, at least twice of it"),
        ("average.decay=1", "average.decay: "),
        ("distillation.teacher=cifar10", "distillation.teacher: "),
        ("adversarial.radius=0", "adversarial.radius: "),
        ("optimizer.clip_norm=0", "optimizer.clip_norm: "),
        ("augment.policy=auto", "augment.policy: "),
        ("augment.mixup=-1", "augment.mixup: "),
    ],
)
def test_wrong_override_is_named(minimal: str, override: str, said: str) -> None:
    with pytest.raises(InputError, match=r"own\.toml: |--set") as caught:
        recipe.load(minimal, [override])
    assert said in str(caught.value)


def test_every_problem_is_listed_at_once(minimal: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe.load(minimal, ["epochs=0", "optimizer.name=lion", "speed=3"])
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["epochs", "optimizer.name", "speed"]


def test_overrides_that_cannot_be_read_are_listed_beside_values_that_do_not_fit(minimal: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe.load(minimal, ["batch_size", "description.more=3", "epochs=0"])
    no_value, no_section, too_few = caught.value.problems
    assert "--set 'batch_size'" in no_value
    assert "--set 'description.more=3'" in no_section
    assert "epochs: " in too_few


def test_recipe_that_lacks_something(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    with pytest.raises(InputError) as caught:
        recipe.load(str(path))
    missing = {problem.split(": ")[1] for problem in caught.value.problems}
    assert missing == {"description", "epochs", "batch_size", "network", "optimizer"}


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"There is no recipe 'fast'\. Use one of .*resnet18.*\.toml file"):
        recipe.load("fast")


@pytest.mark.parametrize("name", ["../recipe", "", "resnet18/"])
def test_name_is_no_path_without_the_ending(name: str) -> None:
    with pytest.raises(InputError, match="There is no recipe"):
        recipe.load(name)


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", b"epochs = 1\nepochs = 2"])
def test_file_that_is_no_recipe(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.toml (is not valid TOML|cannot be read)"):
        recipe.load(str(path))


def test_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml cannot be read"):
        recipe.load(str(tmp_path / "none.toml"))


def test_recipe_is_frozen(minimal: str) -> None:
    found = recipe.load(minimal)
    with pytest.raises(ValidationError, match="frozen"):
        found.epochs = 3  # type: ignore[misc]  # that is the point
    with pytest.raises(ValidationError, match="frozen"):
        found.optimizer.learning_rate = 3  # type: ignore[misc]
