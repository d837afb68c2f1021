"""Hyper-parameter search with Optuna: which values of a recipe do best on the validation split."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from training import data, recipe, run
from training.device import choose_device, tune_for_training
from training.errors import InputError, TrainingError
from training.sink import Epoch, Step

log = logging.getLogger(__name__)

_RANGE = re.compile(r"([^:,]+):([^:,]+?)(:log)?")
_FIXED = frozenset({"network.input_size", "validation"})
_ABOUT = "about"  # the study's user attribute that says what is searched, on what
_TABLES = 20  # Optuna has fewer; when two make them at once, each can find every one of them made by the other
_MADE_MEANWHILE = ("already exists", "unique constraint", "duplicate entry")  # SQLite and PostgreSQL, then MySQL


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; with `log` each power of ten gets as many trials as the next."""

    low: float
    high: float
    log: bool
    whole: bool

    def suggest(self, trial: optuna.Trial, key: str) -> float:
        """A value for one trial."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        """As `space` reads it."""
        low, high = (int(end) if self.whole else end for end in (self.low, self.high))
        return f"{low}:{high}" + ":log" * self.log


@dataclass(frozen=True)
class Choice:
    """One of some values, as they are written after `--set key=`."""

    values: tuple[str, ...]

    def suggest(self, trial: optuna.Trial, key: str) -> str:
        """A value for one trial."""
        return str(trial.suggest_categorical(key, self.values))

    def __str__(self) -> str:
        """As `space` reads it."""
        return ",".join(self.values)


Space = Mapping[str, Range | Choice]


@dataclass(frozen=True)
class Found:
    """The best trial of a study; `trials` counts those of every process and machine that shares it."""

    values: dict[str, Any]
    accuracy: float
    trials: int
    pruned: int

    @property
    def overrides(self) -> list[str]:
        """The best values as `--set` takes them."""
        return [f"{key}={value}" for key, value in self.values.items()]


def space(given: Sequence[str]) -> Space:
    """Read what is searched over.

    Args:
        given: `key=low:high`, `key=low:high:log` or `key=one,another,third`; numbers without a point are whole.

    Raises:
        InputError: names every one that cannot be read.
    """
    found: dict[str, Range | Choice] = {}
    problems = []
    for text in given:
        key, _, values = text.partition("=")
        try:
            found[key.strip()] = _read(values)
        except ValueError as error:
            problems.append(f"--over {text!r}: {error}. Write key=low:high, key=low:high:log or key=one,another.")
    if problems:
        raise InputError(*problems)
    return found


def _read(values: str) -> Range | Choice:
    if "," in values:
        return Choice(tuple(part.strip() for part in values.split(",")))
    numbers = _RANGE.fullmatch(values)
    if not numbers:
        raise ValueError("this is neither a range nor a choice")
    low, high = float(numbers[1]), float(numbers[2])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("the first number has to be less than the second")
    if numbers[3] and low <= 0:
        raise ValueError("a logarithmic range has to begin above 0")
    whole = all(re.fullmatch(r"-?\d+", number.strip()) for number in (numbers[1], numbers[2]))
    return Range(low, high, bool(numbers[3]), whole)


@dataclass(frozen=True)
class Search:
    """What is searched, on what, and where its study is kept.

    Attributes:
        recipe: a recipe's name or file.
        overrides: what is changed in every trial, as `--set` takes it.
        storage: database URL of Optuna, which several machines can share; `sqlite:///search.db` is a file.
        study: name of the study; trials are added to one that is there already, if it is about the same data, recipe,
            seed and space. None for the recipe's name with a digest of these.
        models: where a teacher is looked for, if the recipe names one.
    """

    recipe: str
    overrides: tuple[str, ...]
    source: str
    space: Space
    storage: str
    study: str | None
    models: Path
    seed: int = 0
    device: str = "auto"


def search(asked: Search, trials: int) -> Found:
    """Run so many trials: a tree-structured Parzen estimator proposes them, Hyperband ends the hopeless ones early.

    Sources: Bergstra et al. 2011 (TPE), Li et al. 2016, arXiv:1603.06560 (Hyperband). Trials are judged by the accuracy
    on the validation split of the network that they end with; the test split is never touched. Each has the same seed
    and sees the same pictures. One whose values the recipe refuses counts as ended early, like one that diverges.

    Raises:
        InputError: the arguments or the data are wrong, the study is about another search, the storage cannot be
            opened, or no trial came to an end and the recipe refused the values of one.
        TrainingError: no trial came to an end.
    """
    fixed = sorted(_FIXED & asked.space.keys())
    if fixed:
        raise InputError(f"{' and '.join(fixed)} cannot be searched over: trials are compared on the same pictures.")
    base = recipe.load(asked.recipe, asked.overrides)
    place = choose_device(asked.device)
    tune_for_training(place)
    dataset = data.load(asked.source, base.network.input_size)
    parts = data.partition(dataset, base.validation, asked.seed)
    study = _study(asked, base.epochs, _about(asked, base, dataset.sha256))
    refused: list[InputError] = []

    def objective(trial: optuna.Trial) -> float:
        values = {key: choices.suggest(trial, key) for key, choices in asked.space.items()}
        log.info("trial %d: %s", trial.number, json.dumps(values))
        try:
            chosen = recipe.load(asked.recipe, [*asked.overrides, *(f"{key}={value}" for key, value in values.items())])
            kept = run.fit(
                chosen, parts, dataset.classes, asked.models, seed=asked.seed, device=place, sinks=[_Reporter(trial)]
            )
        except TrainingError as error:  # a rate too high or a batch too large says nothing against the other trials
            log.warning("trial %d failed: %s", trial.number, error)
            if isinstance(error, InputError):
                refused.append(error.with_traceback(None))  # a traceback keeps the trial's network in memory
            raise optuna.TrialPruned from error
        return kept.val_accuracy

    study.optimize(objective, n_trials=trials)
    return _found(study, refused)


class _Reporter:
    """Tells Optuna how a trial goes, and ends it when Optuna says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def step(self, step: Step) -> None:
        """Trials are judged by epochs."""

    def epoch(self, epoch: Epoch) -> None:
        log.info(
            "trial %d, epoch %d/%d: %.2f %% of the validation split",
            self._trial.number,
            epoch.epoch,
            epoch.epochs,
            100 * epoch.val_accuracy,
        )
        self._trial.report(epoch.val_accuracy, epoch.epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned


def _about(asked: Search, base: recipe.Recipe, data_sha256: str) -> dict[str, Any]:
    """What all trials of a study have in common, each under the name that a user knows it by, ready for JSON."""
    settings = base.model_dump(mode="json", exclude={"description", "reached"})
    ranges = {f"--over {key}": str(choices) for key, choices in asked.space.items()}
    return {"data (SHA-256)": data_sha256, "--seed": asked.seed, **_flat(settings), **ranges}


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values by their dotted keys, as `--set` takes them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return found


def _study(asked: Search, epochs: int, about: Mapping[str, Any]) -> optuna.Study:
    """Open the study, or begin it.

    Raises:
        InputError: it is about another search, or the storage cannot be opened.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    name = asked.study or f"{Path(asked.recipe).stem}-{digest[:8]}"
    try:
        study = optuna.create_study(
            study_name=name,
            storage=_storage(asked.storage),
            direction="maximize",
            pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs),
            load_if_exists=True,
        )
        known = len(study.trials)
        if not known and _ABOUT not in study.user_attrs:
            study.set_user_attr(_ABOUT, dict(about))
        before = study.user_attrs.get(_ABOUT)  # read again: another machine may have begun it at the same moment
    except Exception as error:  # each database driver has errors of its own
        raise InputError(f"The storage {asked.storage} cannot be opened ({error}). Check --storage.") from error
    _check_same(name, before, about)
    # Another seed for those that join later, so that they do not repeat the first trials.
    study.sampler = optuna.samplers.TPESampler(seed=asked.seed + known)
    log.info("study %s, with %d trials so far", name, known)
    return study


def _storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage, whose tables are made by whoever opens it first."""
    for _ in range(_TABLES):
        try:
            return optuna.storages.RDBStorage(url)
        except Exception as error:  # each database driver has errors of its own
            if not any(words in str(error).lower() for words in _MADE_MEANWHILE):
                raise
    return optuna.storages.RDBStorage(url)


def _check_same(name: str, before: Mapping[str, Any] | None, about: Mapping[str, Any]) -> None:
    advice = "Name another --study, or leave it out to have one named after the search."
    if before is None:
        raise InputError(f"The study {name!r} has trials, but does not say what they are about. {advice}")
    differences = [
        f"{key} was {_shown(before.get(key))} and is now {_shown(about.get(key))}"
        for key in sorted(before.keys() | about.keys())
        if before.get(key) != about.get(key)
    ]
    if differences:
        raise InputError(f"The study {name!r} is about another search: {'; '.join(differences)}. {advice}")


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


def _found(study: optuna.Study, refused: Sequence[InputError]) -> Found:
    """The best trial; without a finished one, the last of the trials that were refused says why."""
    states = [trial.state for trial in study.trials]
    if optuna.trial.TrialState.COMPLETE not in states:
        if refused:
            raise refused[-1]
        raise TrainingError("No trial came to an end. Run more trials, or search in a narrower range.")
    best = study.best_trial
    return Found(best.params, best.values[0], len(states), states.count(optuna.trial.TrialState.PRUNED))
