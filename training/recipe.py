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

from training.artifact import NAME_PATTERN
from training.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Network(_Section):
    """Architecture by name, with its arguments, and the side of its square input in pixels.

    `pretrained` is `torchvision`, which downloads ImageNet weights, or a file of such weights.
    """

    architecture: str
    arguments: dict[str, Any] = {}
    input_size: Annotated[int, Field(ge=16, le=512)] = 32
    pretrained: str | None = None


class Augment(_Section):
    """What each picture goes through before it is shown; sizes in pixels.

    `mixup` and `cutmix` are the alpha of the Beta distribution that shares are drawn from; 0 is off, and with both on
    each batch takes one of them.
    """

    flip: Literal["none", "alternating"] = "alternating"
    crop_padding: Annotated[int, Field(ge=0)] = 4
    policy: Literal["none", "trivial"] = "none"
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0


class Optimizer(_Section):
    """Rates are for the mean loss of a batch; `learning_rate` is for all parameters, with muon for filters only.

    `relative` rates are shares of each parameter's own root mean square at the start (one, where it starts at zero).
    Earlier layers learn at smaller rates, falling evenly to `first_layer_share` of the head's: the discriminative
    rates of Howard & Ruder 2018 (arXiv:1801.06146, section 3.2).

    `clip_norm` is the largest norm that the gradient of all parameters together keeps (Pascanu et al. 2012,
    arXiv:1211.5063). `weight_decay` is added to the gradient with sgd and adam, and is apart from it with adamw.
    """

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    learning_rate: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    head_learning_rate: PositiveFloat = 1.0
    bias_learning_rate: PositiveFloat = 0.1
    relative: bool = False
    first_layer_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip_norm: PositiveFloat | None = None


class Schedule(_Section):
    """How the rate runs: up over the share `warmup` of all steps, then down by `shape`.

    `step` multiplies the rate by `factor` at each of `milestones`, shares of all steps. `one-cycle` is the policy of
    Smith & Topin (2017, arXiv:1708.07120) in torch's shape, with the momentum left as it is: up from 1/25 of the full
    rate and down to 1/250,000, both by half a cosine. The end comes after the last step, so no step is taken at it.
    """

    shape: Literal["constant", "linear", "cosine", "step", "one-cycle"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    milestones: tuple[Fraction, ...] = ()
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _shape_has_what_it_needs(self) -> Self:
        if (self.shape == "step") != bool(self.milestones):
            raise ValueError("schedule.milestones and schedule.shape='step' need each other")
        if self.shape == "one-cycle" and not self.warmup:
            raise ValueError("schedule.shape='one-cycle' needs schedule.warmup; 0.3 is usual")
        return self


class LowResolution(_Section):
    """The first `fraction` of all steps sees pictures scaled to `size` pixels: less work at little loss.

    With `grow_to` they grow up to it, 4 pixels at a time, and every size gets as many steps (progressive resizing).
    """

    size: Annotated[int, Field(ge=16)]
    fraction: Fraction
    grow_to: int | None = None

    @property
    def sizes(self) -> range:
        """The sizes, one after the other, in pixels."""
        return range(self.size, (self.grow_to or self.size) + 1, 4)

    def at(self, done: float) -> int | None:
        """The size after the share `done` (0 to 1) of all steps; None for the full one."""
        return self.sizes[int(done / self.fraction * len(self.sizes))] if done < self.fraction else None


class Freeze(_Section):
    """What is not trained: the first `layers` of `layers.layers`, and whether norms keep the statistics they have.

    With `epochs` only so long; then everything is trained.
    """

    layers: NonNegativeInt = 0
    statistics: bool = False
    epochs: PositiveInt | None = None

    def covers(self, epoch: int) -> bool:
        """Whether it holds in an epoch, numbered from 0."""
        return self.epochs is None or epoch < self.epochs


class EarlyStopping(_Section):
    """Stop after `patience` epochs without a better validation score; the best epoch's weights are kept.

    Epochs that were validated at a low resolution are not compared with those at the full one.
    """

    metric: Literal["loss", "accuracy", "macro_f1"] = "loss"
    patience: PositiveInt = 5


class Average(_Section):
    """Weights averaged over the steps are what is validated and kept, `decay` the share of the average in each step."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999


class Distillation(_Section):
    """Learn from the answers of a model in the models folder (Hinton et al. 2015, arXiv:1503.02531).

    `teacher` is `name@version`. The distance from its answers, both divided by `temperature`, is added to the loss
    `weight` times.
    """

    teacher: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}@[1-9]\d*$")]
    weight: PositiveFloat = 1.0
    temperature: PositiveFloat = 4.0


class Adversarial(_Section):
    """Train on pictures changed to raise the loss, by `steps` of `step` within `radius`, in 255ths of the full range.

    The start is random. One step of 1.25 times the radius is FGSM as in arXiv:2001.03994, several smaller ones are PGD
    (arXiv:1706.06083).
    """

    radius: PositiveFloat = 8.0
    step: PositiveFloat = 10.0
    steps: PositiveInt = 1


class Recipe(_Section):
    """One named run. `reached` says what was measured with it, where and in what time.

    `batch_size` is the pictures of one step of the optimiser, over all processes. `accumulate` computes them in so many
    parts, one after another, which takes less memory; batch norm then sees a part at a time. `compile` is for CUDA:
    `graphs` launches a network's kernels all at once (`training.graphs`), which pays after seconds; the others are
    modes of `torch.compile`, which take longer.

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
    accumulate: PositiveInt = 1
    compile: Literal["off", "graphs", "default", "reduce-overhead", "max-autotune"] = "off"
    network: Network
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    low_resolution: LowResolution | None = None
    freeze: Freeze = Freeze()
    early_stopping: EarlyStopping | None = None
    average: Average | None = None
    distillation: Distillation | None = None
    adversarial: Adversarial | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        size = self.network.input_size
        if self.augment.crop_padding >= size:
            raise ValueError(f"augment.crop_padding has to be less than network.input_size, {size}")
        low = self.low_resolution
        if low and not (low.size < size and low.size <= (low.grow_to or low.size) < size):
            raise ValueError(
                f"low_resolution.size has to be less than network.input_size, {size}, and so has grow_to, which cannot "
                "be less than it"
            )
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            raise ValueError("batch_size has to be a multiple of accumulate, at least twice of it")
        if self.compile == "graphs" and (self.accumulate > 1 or self.freeze.epochs):
            raise ValueError("compile = 'graphs' takes no accumulate and no freeze.epochs")
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
    problems: list[str] = []
    for override in overrides:
        try:
            _override(values, override)
        except InputError as error:
            problems += error.problems
    try:
        found = Recipe.model_validate(values)
    except ValidationError as error:
        problems += (f"Recipe {name}: {'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
    if problems:
        raise InputError(*problems)
    return found


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
