"""The command line: `python -m training`."""

import dataclasses
import json
import logging
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from training import artifact, distributed, lock, pruning, quantisation, recipe, report, run, scoring
from training import crossvalidate as cross_validation
from training.artifact import Manifest
from training.data import cache_folder
from training.device import choose_device, set_threads
from training.errors import InputError, TrainingError
from training.finetune import FinetuneJob
from training.finetune import finetune as run_finetune
from training.machine import keep_freed_memory
from training.progress import Bar, JsonLines, TensorBoard, clock
from training.sink import Sink
from training.source import locate

# A path behind `--set=network.pretrained='` and the like; what begins as a table or a list of TOML is none.
_PATH = re.compile(r"((?:[\w.-]+\s*=\s*)*+['\"]?+)(?![{\[])(.*/.*)", re.DOTALL)

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Train, fine-tune, evaluate and list image classifiers."
)


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class SplitName(StrEnum):
    """Part of a data source."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


Data = Annotated[str, typer.Option(help="cifar10, a folder of class folders, or a .zip, .tar, .tar.gz, .tar.xz of it.")]
Models = Annotated[Path, typer.Option(help="Folder that holds the models.")]


@app.command()
def train(  # noqa: PLR0913, PLR0917  each is an option
    recipe_name: Annotated[str, typer.Option("--recipe", help="A recipe's name, or the path of a .toml file.")],
    data: Data,
    name: Annotated[str, typer.Option(help="Name of the model; the run becomes its next version.")],
    models: Models = Path("models"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a value of the recipe: epochs=3.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run of this name.")] = False,
    device: Device = Device.AUTO,
    seed: int = 0,
    estimate: Annotated[bool, typer.Option("--estimate", help="Time a few steps, say how long it would take.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's curves.")] = None,
) -> None:
    """Train a model and write it as the next version."""
    chosen: recipe.Recipe = _check(
        partial(recipe.load, recipe_name, set_ or ()),
        partial(artifact.check_name, name),
        partial(_find, data),
        partial(choose_device, device.value),
    )[0]
    _prepare()
    job = run.Job(chosen, data, name, models, seed, device.value, _command())
    if estimate:
        typer.echo(f"About {clock(run.estimate(job))} for {chosen.epochs} epochs, from a few timed steps.")
        return
    curves = [TensorBoard(tensorboard)] if tensorboard else []
    manifest = _followed(models, name, chosen.epochs, lambda sinks: run.train(job, [*sinks, *curves], resume))
    _conclude(models, manifest, f"trained in {clock(manifest.training_seconds)}.")


@app.command()
def finetune(  # noqa: PLR0913, PLR0917  each is an option, given by its name
    base: Annotated[
        str, typer.Option(help="Model to begin with: NAME for its version in production, or NAME@VERSION.")
    ],
    data: Data,
    name: Annotated[str, typer.Option(help="Name of the model; the run becomes its next version.")],
    models: Models = Path("models"),
    method: Annotated[
        Literal["auto", "head", "full", "lora"],
        typer.Option(help="What is trained after the head: nothing, all weights, or low-rank adapters."),
    ] = "auto",
    classes: Annotated[
        Literal["auto", "replace", "add"], typer.Option(help="Replace the base's classes, or add to them.")
    ] = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="The first one fits the head alone.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Share of its size that a weight may change by.")] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the network's input in pixels.")] = None,
    base_data: Annotated[str | None, typer.Option(help="What the base was trained on, to remind it of.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run of this name.")] = False,
    device: Device = Device.AUTO,
    seed: int = 0,
) -> None:
    """Adapt a model to your pictures. What is not given is chosen from the data."""
    _check(
        partial(artifact.resolve, models, base),
        partial(artifact.check_name, name),
        partial(_find, data),
        partial(_find, base_data),
        partial(_check_rate, learning_rate),
        partial(choose_device, device.value),
    )
    _prepare()
    job = FinetuneJob(
        base=base,
        source=data,
        name=name,
        models=models,
        method=method,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        classes=classes,
        seed=seed,
        device=device.value,
        command=_command(),
        input_size=input_size,
        base_data=base_data,
    )
    manifest = _followed(models, name, None, lambda sinks: run_finetune(job, sinks, resume))
    lost = manifest.metrics["forgetting"]
    forgot = (
        f" Of {lost['count']:,} pictures of the base's classes it knew {lost['before']:.2%} and now knows "
        f"{lost['after']:.2%}."
        if "count" in lost
        else ""
    )
    _conclude(models, manifest, f"fine-tuned from {manifest.parent} in {clock(manifest.training_seconds)}.{forgot}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="NAME for the version in production, or NAME@VERSION.")],
    data: Data,
    split: SplitName = SplitName.TEST,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Score noisy, blurred, pale pictures too.")
    ] = False,
    ood: Annotated[
        str | None, typer.Option(help="A source of pictures of other things: how well are they told apart?")
    ] = None,
    pictures: Annotated[Path | None, typer.Option("--report", help="Folder to draw the figures into.")] = None,
    models: Models = Path("models"),
) -> None:
    """Score a model on a data source, through the file that is served."""
    _check(partial(artifact.resolve, models, model), partial(_find, data), partial(_find, ood))
    _prepare()
    figures = scoring.score(models, model, data, split.value, corruptions=corruptions, unknown=ood)
    if pictures:
        report.write_pictures(figures, list(figures["per_class"]), pictures)
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
        return
    low, high = figures["accuracy_interval_95"]
    table = Table("class", "precision", "recall", "F1", "pictures")
    for label, row in figures["per_class"].items():
        shares = (f"{row[key]:.1%}" for key in ("precision", "recall", "f1"))
        table.add_row(label, *shares, f"{row['count']:,}")
    _print(table)
    _print(
        f"{figures['model']} version {figures['version']}, {figures['scored']}: accuracy {figures['accuracy']:.2%} "
        f"({low:.2%} to {high:.2%}), macro F1 {figures['macro_f1']:.2%}, "
        f"calibration error {figures['calibration_error']:.2%}"
    )
    if corruptions:
        _print(_corruption_table(figures["corruptions"]))
    if ood:
        scores = ", ".join(f"{score} {value:.3f}" for score, value in figures["novelty"]["auroc"].items())
        unknown = f"{figures['novelty']['unknown']:,} pictures of other things"
        _print(f"AUROC against {unknown}: {scores}")


@app.command()
def prune(
    model: Annotated[str, typer.Option(help="NAME for the version in production, or NAME@VERSION.")],
    data: Data,
    keep: Annotated[float, typer.Option(help="Share of the channels that is left.")] = 0.7,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 8,
    models: Models = Path("models"),
    device: Device = Device.AUTO,
) -> None:
    """Take the weakest filters out of a model, fine-tune what is left, and write it as the next version."""
    _check(partial(artifact.resolve, models, model), partial(_find, data), partial(choose_device, device.value))
    _prepare()
    task = pruning.Pruning(model, data, models, keep, epochs, device.value, _command())
    with _alone(models, model), Bar(epochs) as bar:
        manifest = pruning.prune(task, [bar])
    size = manifest.files[artifact.WEIGHTS].size / 1e6
    _conclude(models, manifest, f"pruned from {manifest.parent} to weights of {size:.2f} MB.")


@app.command()
def quantise(
    model: Annotated[str, typer.Option(help="NAME for the version in production, or NAME@VERSION.")],
    data: Annotated[str, typer.Option(help="What the model was trained on.")],
    models: Models = Path("models"),
) -> None:
    """Turn a model into 8-bit integers, measure what that costs, and write it as the next version."""
    _check(partial(artifact.resolve, models, model), partial(_find, data))
    _prepare()
    with _alone(models, model):
        manifest = quantisation.quantise(quantisation.Quantisation(model, data, models, _command()))
    cost = report.quantisation_cost(manifest.quantisation or {})
    _conclude(models, manifest, f"quantised from {manifest.parent}: {cost}.")


@app.command()
def crossvalidate(
    recipe_name: Annotated[str, typer.Option("--recipe", help="A recipe's name, or the path of a .toml file.")],
    data: Data,
    folds: Annotated[int, typer.Option(help="How many parts; each is left out of one training run.")] = 5,
    models: Models = Path("models"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a value of the recipe: epochs=3.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    device: Device = Device.AUTO,
    seed: int = 0,
) -> None:
    """Train once for each fold and score what was left out; the test split is not touched."""
    chosen: recipe.Recipe = _check(
        partial(recipe.load, recipe_name, set_ or ()), partial(_find, data), partial(choose_device, device.value)
    )[0]
    _prepare()
    with Bar(chosen.epochs) as bar:
        found = cross_validation.crossvalidate(
            chosen, data, folds, models=models, seed=seed, device=device.value, sinks=[bar]
        )
    if as_json:
        typer.echo(
            json.dumps(dataclasses.asdict(found) | {"accuracy": found.accuracy, "spread": found.spread}, indent=1)
        )
        return
    _print(
        f"{', '.join(f'{accuracy:.2%}' for accuracy in found.accuracies)}: mean {found.accuracy:.2%}, standard "
        f"deviation {found.spread:.2%} over {folds} folds of {found.pictures:,} pictures."
    )


@app.command()
def search(  # noqa: PLR0913, PLR0917  each is an option, given by its name
    recipe_name: Annotated[str, typer.Option("--recipe", help="A recipe's name, or the path of a .toml file.")],
    data: Data,
    over: Annotated[
        list[str], typer.Option(help="What to search over: key=low:high, key=low:high:log, or key=one,another.")
    ],
    trials: Annotated[int, typer.Option(help="How many trials this process runs.")] = 20,
    study: Annotated[
        str | None,
        typer.Option(
            help="Name of the study, which the same search adds to when it is run again. By default the recipe's name "
            "and a digest of data, recipe, seed and ranges, so that another search has a study of its own."
        ),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL; several machines can share one. SQLite in the models folder.")
    ] = None,
    models: Models = Path("models"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a value of the recipe: epochs=3.")] = None,
    device: Device = Device.AUTO,
    seed: int = 0,
) -> None:
    """Search for better values of a recipe, judged on the validation split."""
    try:
        from training import search as searching  # noqa: PLC0415  Optuna is an extra
    except ModuleNotFoundError as error:
        raise InputError(f"The search needs {error.name}. Install it: pip install 'refit[search]'.") from error
    space: searching.Space = _check(
        partial(searching.space, over),
        partial(recipe.load, recipe_name, set_ or ()),
        partial(_find, data),
        partial(choose_device, device.value),
    )[0]
    _prepare()
    if storage is None:
        (models / ".runs").mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{models / '.runs' / 'search.db'}"
    asked = searching.Search(recipe_name, tuple(set_ or ()), data, space, storage, study, models, seed, device.value)
    found = searching.search(asked, trials)
    _print(
        f"{found.accuracy:.2%} of the validation split, the best of {found.trials} trials ({found.pruned} ended "
        "early):\n" + " ".join(f"--set {override}" for override in found.overrides)
    )


@app.command()
def recipes() -> None:
    """List the recipes: what each is for, and what it reached, measured on what."""
    table = Table("recipe", "for", "reached")
    for name in recipe.names():
        found = recipe.load(name)
        table.add_row(name, found.description, found.reached)
    _print(table)


def _corruption_table(found: Mapping[str, Any]) -> Table:
    title = f"accuracy of {found['count']:,} pictures by strength; clean {found['clean']:.1%}, mean {found['mean']:.1%}"
    table = Table("corruption", "1", "2", "3", "4", "5", title=title)
    for name, row in found["accuracy"].items():
        table.add_row(name.replace("_", " "), *(f"{share:.1%}" for share in row))
    return table


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 the run failed, 2 the arguments or the data are wrong."""
    try:
        app(standalone_mode=True)
    except TrainingError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


def _check(*checks: Callable[[], object]) -> list[Any]:
    """What each check of the arguments gives, before anything that takes time is done.

    Raises:
        InputError: names all that any of them found wrong.
    """
    given: list[Any] = []
    problems: list[str] = []
    for check in checks:
        try:
            given.append(check())
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return given


def _check_rate(rate: float | None) -> None:
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"--learning-rate is a number above 0, such as 0.005, not {rate}.")


def _find(source: str | None) -> None:
    """See that a SOURCE is there, if one is given; cifar10 may have to be downloaded, which is left to the run."""
    if source is not None and source != "cifar10":
        locate(source, cache_folder())


def _prepare() -> None:
    logging.basicConfig(
        level=logging.INFO if distributed.is_first() else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    keep_freed_memory()
    set_threads(distributed.local_processes())


def _command() -> list[str]:
    return ["python", "-m", "training", *(_file_name(part) for part in sys.argv[1:] if part != "--resume")]


def _followed(models: Path, name: str, epochs: int | None, start: Callable[[list[Sink]], Manifest]) -> Manifest:
    """Start a run that shows and logs how it goes, alone of its name; of several processes the first one does."""
    if not distributed.is_first():
        return start([])
    folder = run.runs_folder(models, name)
    try:
        with lock.exclusive(folder, shlex.join(_command())):
            folder.mkdir(exist_ok=True)
            log_file = folder / "log.jsonl"
            log_file.unlink(missing_ok=True)
            with Bar(epochs) as bar:
                return start([JsonLines(log_file), bar])
    except KeyboardInterrupt as error:
        kept = (folder / run.CHECKPOINT).exists()
        how = "Finished epochs are kept: the same command with --resume goes on." if kept else "No epoch was finished."
        raise TrainingError(f"Interrupted. {how}") from error


def _alone(models: Path, model: str) -> AbstractContextManager[None]:
    """Keep others from making a version of the model meanwhile."""
    name, _ = artifact.resolve(models, model)
    return lock.exclusive(run.runs_folder(models, name), shlex.join(_command()))


def _conclude(models: Path, manifest: Manifest, how: str) -> None:
    if not distributed.is_first():
        return
    test = manifest.metrics["test"]
    low, high = test["accuracy_interval_95"]
    _print(
        f"{manifest.name} version {manifest.version}: {test['accuracy']:.2%} of {test['count']:,} test pictures "
        f"({low:.2%} to {high:.2%}), {how}\n"
        f"It lies in {artifact.folder(models, manifest.name, manifest.version)}; look at report/card.md."
    )


def _file_name(part: str) -> str:
    """A card says which archive, not where it lay on the machine that made the model."""
    path = _PATH.fullmatch(part)
    return f"{path[1]}{Path(path[2]).name}" if path else part


def _print(what: str | Table) -> None:
    """Print text as it is: Rich would take the `[left]` and the `:car:` of a name for markup."""
    Console(markup=False, emoji=False).print(what, highlight=False, soft_wrap=isinstance(what, str))
