"""What a fine-tune does, decided from its data: which head, what size of input, how long, at what rates."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from training.artifact import Manifest
from training.balance import imbalance
from training.data import Survey
from training.errors import InputError
from training.preflight import natural
from training.recipe import Augment, EarlyStopping, Freeze, Network, Optimizer, Recipe, Schedule

log = logging.getLogger(__name__)

Method = Literal["head", "full", "lora"]
Fate = Literal["keep", "replace", "add"]

MOST_VALIDATION = 2500  # pictures at most, and a fifth of the training split at most
_UNBALANCED = 1.5  # ratio of the largest to the smallest class from which on classes are weighed
_MAX_SIZE = 256
# Training passes times input pixels that a fine-tune may take, in pictures of 32x32: about five minutes of two CPU
# cores for the default model. A GPU does fifty times as much.
_BUDGET = {"cpu": 100_000, "cuda": 5_000_000}


class Wishes(Protocol):
    """What the user left open is None or "auto"."""

    @property
    def method(self) -> Literal["auto", "head", "full", "lora"]: ...
    @property
    def classes(self) -> Literal["auto", "replace", "add"]: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def learning_rate(self) -> float | None: ...
    @property
    def input_size(self) -> int | None: ...


@dataclass(frozen=True)
class Plan:
    """What is settled before the pictures are decoded.

    Attributes:
        fate: what becomes of the base's classes: kept as they are, replaced, or kept with others added.
        classes: names of the new version's classes in order; kept ones come first, in the base's order.
        method: which weights are trained after the head.
        levels: scales that the network looks at.
        input_size: side of its square input in pixels.
    """

    fate: Fate
    classes: tuple[str, ...]
    method: Method
    levels: int
    input_size: int


def make_plan(wishes: Wishes, base: Manifest, survey: Survey, device: str) -> Plan:
    """Settle classes, method and input size.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        InputError: an input size that does not fit the base or what becomes of its classes.
    """
    fate, classes = _classes(wishes.classes, base.classes, survey.classes)
    levels = int(base.arguments.get("levels", 1))
    native = base.input_size // 2 ** (levels - 1)
    size = base.input_size
    if fate == "replace":
        size = _input_size(wishes.input_size, native, survey, _BUDGET[device])
        dropped = [name for name in base.classes if name not in classes]
        if dropped:
            log.warning("the classes %s of the base are dropped: the data has none of them", dropped)
    elif wishes.input_size not in {None, size}:
        raise InputError(f"A model that keeps its base's classes keeps its input size too, {size}. Leave it out.")
    # A new class on features that stay as they are cannot disturb the old ones; see the README for what that costs.
    auto: Method = "head" if fate == "add" else "full"
    method = auto if wishes.method == "auto" else wishes.method
    return Plan(fate, classes, method, (size // native).bit_length(), size)


def _classes(wish: str, known: Sequence[str], found: Sequence[str]) -> tuple[Fate, tuple[str, ...]]:
    if wish == "add":
        new = [name for name in found if name not in known]
        return ("add" if new else "keep"), (*known, *sorted(new, key=natural))
    if wish == "auto" and set(known) == set(found):
        return "keep", tuple(known)
    return "replace", tuple(found)


def _input_size(wish: int | None, native: int, survey: Survey, budget: int) -> int:
    """The base's own size, doubled as often as the pictures are larger and the work stays within the budget."""
    sizes = [native << doubling for doubling in range(5) if native << doubling <= _MAX_SIZE]
    if wish is not None:
        if wish not in sizes:
            raise InputError(f"An input size of {wish} does not fit this base. Use one of {sizes}.")
        return wish
    passes = _epochs(survey.count) * survey.count
    cheap = [size for size in sizes if passes * (size / 32) ** 2 * 4 / 3 <= budget]
    return max([size for size in cheap if size <= survey.side], default=native)


def _rate(method: Method) -> float:
    return 1e-2 if method == "lora" else 5e-3


def make_recipe(wishes: Wishes, plan: Plan, base: Manifest, name: str, labels: Tensor) -> Recipe:
    """Settle the rest from the training pictures, int64 [N] labels.

    Raises:
        InputError: a wish is out of range.
    """
    count = len(labels)
    unfrozen = plan.method != "head"
    epochs = (wishes.epochs or 1 + _epochs(count)) if unfrozen else 1
    batch_size = wishes.batch_size or _batch_size(count)
    return Recipe(
        description=f"fine-tuned from {name}, method {plan.method}",
        epochs=epochs,
        batch_size=max(2, min(batch_size, count // 4)),
        validation=MOST_VALIDATION,
        label_smoothing=0.1,
        weights=base.recipe.get("weights", "float32"),
        class_weights="balanced" if imbalance(labels) > _UNBALANCED else "none",
        network=Network(
            architecture=base.architecture,
            arguments={key: value for key, value in base.arguments.items() if key != "levels"}
            | ({"levels": plan.levels} if plan.levels > 1 else {}),
            input_size=plan.input_size,
        ),
        optimizer=Optimizer(
            name="adamw",
            learning_rate=_rate(plan.method) if wishes.learning_rate is None else wishes.learning_rate,
            weight_decay=0.01,
            relative=True,
            first_layer_share=0.1,
        ),
        schedule=Schedule(shape="cosine", warmup=0.1),
        augment=Augment(flip="alternating", crop_padding=plan.input_size // 8),
        # Norms keep the base's statistics: those of a small batch are too rough an estimate.
        freeze=Freeze(statistics=True),
        early_stopping=EarlyStopping(metric="macro_f1", patience=max(4, epochs // 4)),
    )


def _epochs(count: int) -> int:
    """Epochs after the head's: many over few pictures, few over many, so that 500 pictures give about 11,000 passes."""
    return min(30, max(5, round((8000 + 6 * count) / max(1, count))))


def _batch_size(count: int) -> int:
    return 16 if count < 500 else 32 if count < 2000 else 64 if count < 10_000 else 128
