"""Hyper-parameter search with Optuna: which values of a recipe do best on the validation split."""

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


@dataclass(frozen=True)
class Choice:
    """One of some values, as they are written after `--set key=`."""

    values: tuple[str, ...]

    def suggest(self, trial: optuna.Trial, key: str) -> str:
        """A value for one trial."""
        return str(trial.suggest_categorical(key, self.values))


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
        study: name of the study; trials are added to one that is there already.
        models: where a teacher is looked for, if the recipe names one.
    """

    recipe: str
    overrides: tuple[str, ...]
    source: str
    space: Space
    storage: str
    study: str
    models: Path
    seed: int = 0
    device: str = "auto"


def search(asked: Search, trials: int) -> Found:
    """Run so many trials: a tree-structured Parzen estimator proposes them, Hyperband ends the hopeless ones early.

    Sources: Bergstra et al. 2011 (TPE), Li et al. 2016, arXiv:1603.06560 (Hyperband). Trials are judged by the accuracy
    on the validation split; the test split is never touched. Each has the same seed and sees the same pictures.

    Raises:
        InputError: the arguments or the data are wrong, or the storage cannot be opened.
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
    study = _study(asked, base.epochs)

    def objective(trial: optuna.Trial) -> float:
        values = {key: choices.suggest(trial, key) for key, choices in asked.space.items()}
        chosen = recipe.load(asked.recipe, [*asked.overrides, *(f"{key}={value}" for key, value in values.items())])
        log.info("trial %d: %s", trial.number, json.dumps(values))
        try:
            history = run.fit(
                chosen, parts, dataset.classes, asked.models, seed=asked.seed, device=place, sinks=[_Reporter(trial)]
            )
        except InputError:
            raise
        except TrainingError as error:  # a rate too high or a batch too large says nothing against the other trials
            log.warning("trial %d failed: %s", trial.number, error)
            raise optuna.TrialPruned from error
        return history[-1].val_accuracy

    study.optimize(objective, n_trials=trials)
    return _found(study)


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


def _study(asked: Search, epochs: int) -> optuna.Study:
    try:
        storage = optuna.storages.RDBStorage(asked.storage)
        before = optuna.get_all_study_names(storage)
        known = len(optuna.load_study(study_name=asked.study, storage=storage).trials) if asked.study in before else 0
        return optuna.create_study(
            study_name=asked.study,
            storage=storage,
            direction="maximize",
            # Another seed for those that join later, so that they do not repeat the first trials.
            sampler=optuna.samplers.TPESampler(seed=asked.seed + known),
            pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs),
            load_if_exists=True,
        )
    except Exception as error:  # each database driver has errors of its own
        raise InputError(f"The storage {asked.storage} cannot be opened ({error}). Check --storage.") from error


def _found(study: optuna.Study) -> Found:
    states = [trial.state for trial in study.trials]
    if optuna.trial.TrialState.COMPLETE not in states:
        raise TrainingError("No trial came to an end. Run more trials, or search in a narrower range.")
    best = study.best_trial
    return Found(best.params, best.values[0], len(states), states.count(optuna.trial.TrialState.PRUNED))
