"""Recipes: everything that a run does, in one validated, frozen record that is saved with what it made."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from training.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Network(_Section):
    """Architecture by name, with its arguments, and the side of its square input in pixels."""

    architecture: str
    arguments: dict[str, Any] = {}
    input_size: Annotated[int, Field(ge=16, le=512)] = 32


class Augment(_Section):
    """What each picture goes through before it is shown; sizes in pixels."""

    flip: Literal["none", "alternating"] = "alternating"
    crop_padding: Annotated[int, Field(ge=0)] = 4
    cutout: Annotated[int, Field(ge=0)] = 0


class Optimizer(_Section):
    """Rates are for the mean loss of a batch; `learning_rate` is for all parameters, with muon for filters only.

    `relative` rates are shares of each parameter's own root mean square at the start (one, where it starts at zero).
    Earlier layers learn at smaller rates, falling evenly to `first_layer_share` of the head's: the discriminative
    rates of Howard & Ruder 2018 (arXiv:1801.06146, section 3.2).
    """

    name: Literal["sgd", "adamw", "muon"] = "sgd"
    learning_rate: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    head_learning_rate: PositiveFloat = 1.0
    bias_learning_rate: PositiveFloat = 0.1
    relative: bool = False
    first_layer_share: Annotated[float, Field(gt=0, le=1)] = 1.0


class Schedule(_Section):
    """How the rate runs: up over the share `warmup` of all steps, then down by `shape`.

    A warm-up of 0.3 with cosine is the one-cycle policy (Smith & Topin 2017, arXiv:1708.07120).
    """

    shape: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0


class LowResolution(_Section):
    """The first `fraction` of all steps sees pictures scaled to `size` pixels: less work at little loss."""

    size: Annotated[int, Field(ge=16)]
    fraction: Fraction


class Freeze(_Section):
    """What is not trained: the first `layers` of `layers.layers`, and whether norms keep the statistics they have."""

    layers: NonNegativeInt = 0
    statistics: bool = False


class EarlyStopping(_Section):
    """Stop after `patience` epochs without a better validation score; the best epoch's weights are kept.

    Epochs that were validated at a low resolution are not compared with those at the full one.
    """

    metric: Literal["loss", "accuracy", "macro_f1"] = "loss"
    patience: PositiveInt = 5


class Recipe(_Section):
    """One named run. `reached` says what was measured with it, where and in what time.

    `replay` pictures of each class are stored with the weights, so that a fine-tune need not forget them.
    """

    description: str
    reached: str = "not run"
    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    validation: PositiveInt = 2500
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    weights: Literal["float32", "float16"] = "float32"
    class_weights: Literal["none", "balanced"] = "none"
    replay: NonNegativeInt = 60
    network: Network
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    low_resolution: LowResolution | None = None
    freeze: Freeze = Freeze()
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        size = self.network.input_size
        if self.augment.crop_padding >= size:
            raise ValueError(f"augment.crop_padding has to be less than network.input_size, {size}")
        if self.low_resolution and self.low_resolution.size >= size:
            raise ValueError(f"low_resolution.size has to be less than network.input_size, {size}")
        return self


def names() -> Sequence[str]:
    """The recipes that come with the package."""
    found = (file.name for file in files("training").joinpath("recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change single values of it.

    Args:
        name: one of `names()`, or the path of a TOML file.
        overrides: `key=value`, the key dotted for a section (`optimizer.learning_rate=0.1`), the value as in
            TOML.

    Raises:
        InputError: no such recipe, or keys or values that do not fit, each named.
    """
    text = _text(name)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The recipe {name} is not valid TOML: {error}") from error
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise InputError(*(f"Recipe {name}: {problem}" for problem in problems)) from error


def _text(name: str) -> str:
    if name.endswith(".toml"):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The recipe {name} cannot be read: {error}") from error
    if name not in names():
        raise InputError(f"There is no recipe {name!r}. Use one of {', '.join(names())}, or the path of a .toml file.")
    return files("training").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"--set {override!r} is not of the form key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override!r}: {section!r} is a value, not a section.")
    values[last] = value
