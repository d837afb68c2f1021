"""What a person looks at: curves, the confusion matrix, and the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.artifact import Manifest
from training.progress import clock
from training.sink import Epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_curves(history: Sequence[Epoch], path: Path) -> None:
    """Draw loss and accuracy of both splits over the epochs."""
    figure = _figure(9, 3.6)
    epochs = [epoch.epoch for epoch in history]
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [epoch.loss for epoch in history], label="training")
    left.plot(epochs, [epoch.val_loss for epoch in history], label="validation")
    left.set(xlabel="epoch", ylabel="loss")
    right.plot(epochs, [100 * epoch.accuracy for epoch in history], label="training")
    right.plot(epochs, [100 * epoch.val_accuracy for epoch in history], label="validation")
    right.set(xlabel="epoch", ylabel="accuracy in %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def write_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Draw which class was taken for which; the numbers are left out where they could not be read."""
    size = min(12.0, 3 + 0.5 * len(classes))
    figure = _figure(size, size)
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="truth")
    # Two dollar signs in the name of a class would make a formula of what is between them.
    axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    if len(classes) <= 20:
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    figure.savefig(path, dpi=110)


def _figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches."""
    # Slow to import, and not needed until there is something to draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finetune_rows(manifest: Manifest) -> str:
    """What a fine-tuned version was made of, how, and what it forgot; nothing for any other."""
    how = manifest.finetune
    if how is None:
        return ""
    stored = f", with {how['replayed']:,} of its pictures from {how['replayed_from']}" if how["replayed"] else ""
    method = f"method {how['method']}, epoch {how['best_epoch']} is kept"
    rows = f"| fine-tuned from | {manifest.parent}, {method}{stored} |\n"
    lost = manifest.metrics["forgetting"]
    if lost["dropped"]:
        rows += f"| no longer known | {', '.join(lost['dropped'])} |\n"
    if "count" in lost:
        rows += (
            f"| forgotten | {lost['lost_points']:.2f} points: of {lost['count']:,} pictures of the base's classes it "
            f"knew {lost['before']:.2%} before and knows {lost['after']:.2%} |\n"
        )
    elif lost["classes"] != "replace":
        rows += "| forgotten | not measured: no picture of the base's data was at hand |\n"
    folds = manifest.metrics.get("cross_validation")
    if folds:
        rows += (
            f"| {folds['folds']} folds of {folds['count']:,} training pictures | accuracy {folds['accuracy']:.2%} "
            f"(standard deviation {folds['accuracy_deviation']:.2%}), {folds['method']} |\n"
        )
    return rows


def _quantisation_rows(manifest: Manifest) -> str:
    """What a quantised version was made of and what that cost; nothing for any other."""
    how = manifest.quantisation
    if how is None:
        return ""
    return (
        f"| quantised from | {manifest.parent}, {how['weights']} weights and {how['activations']} activations, ranges "
        f"from {how['pictures']:,} training pictures |\n| cost of that | {quantisation_cost(how)} |\n"
    )


def quantisation_cost(how: Mapping[str, Any]) -> str:
    """The figures of a manifest's `quantisation` in words."""
    accuracy, size = how["accuracy"], how["bytes"]
    return (
        f"{accuracy['before']:.2%} of {how['count']:,} validation pictures before, {accuracy['after']:.2%} after; "
        f"weights {size['before'] / 1e6:.2f} MB before, {size['after'] / 1e6:.2f} MB after"
    )


def write_reliability(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the accuracy of each bin of confidence, from `evaluate.reliability`; calibrated is on the diagonal."""
    figure = _figure(4.5, 4.5)
    axes = figure.subplots()
    total = sum(row["count"] for row in rows)
    axes.plot((0, 1), (0, 1), color="grey", linewidth=1)
    axes.bar([row["confidence"] for row in rows], [row["count"] / total for row in rows], width=0.03, alpha=0.3)
    axes.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], marker="o")
    axes.set(xlabel="confidence", ylabel="accuracy; bars: share of the pictures", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def write_corruptions(found: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy under each corruption, a bar for each strength, from `corruption.accuracies`."""
    figure = _figure(9, 3.6)
    axes = figure.subplots()
    rows = found["accuracy"]
    for strength in range(5):
        places = [index + 0.16 * (strength - 2) for index in range(len(rows))]
        heights = [100 * row[strength] for row in rows.values()]
        axes.bar(places, heights, width=0.14, color=f"C{strength}", label=f"strength {strength + 1}")
    axes.axhline(100 * found["clean"], color="grey", linewidth=1, label="clean")
    axes.set_xticks(range(len(rows)), [name.replace("_", "\n") for name in rows])
    axes.set(ylabel="accuracy in %", ylim=(0, 100))
    axes.legend(ncols=6, fontsize=8, loc="lower center")
    figure.savefig(path, dpi=110)


def write_pictures(figures: Mapping[str, Any], classes: Sequence[str], folder: Path) -> None:
    """Draw what `scoring.score` found: confusion, reliability and, where measured, corruptions."""
    folder.mkdir(parents=True, exist_ok=True)
    write_confusion(figures["confusion"], classes, folder / "confusion.png")
    write_reliability(figures["reliability"], folder / "reliability.png")
    if "corruptions" in figures:
        write_corruptions(figures["corruptions"], folder / "corruptions.png")


def class_rows(per_class: Mapping[str, Mapping[str, float]]) -> str:
    """A row of a Markdown table for each class; one without a picture has a count alone."""

    def shares(row: Mapping[str, float]) -> str:
        return " | ".join(f"{row[key]:.1%}" if row["count"] else "-" for key in ("precision", "recall", "f1"))

    rows = ((name.replace("|", r"\|"), shares(row), row["count"]) for name, row in per_class.items())
    return "\n".join(f"| {name} | {found} | {count:,} |" for name, found, count in rows)


def write_card(manifest: Manifest, path: Path) -> None:
    """Write the model card (Mitchell et al. 2019, arXiv:1810.03993) as Markdown."""
    test = manifest.metrics["test"]
    low, high = test["accuracy_interval_95"]
    data = manifest.data
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts.items())
    made = (
        f" The {' and '.join(data.made_splits)} split was cut from the training pictures." if data.made_splits else ""
    )
    rows = class_rows(test["per_class"])
    size = manifest.input_size
    accuracy = f"{test['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"
    temperature = f"temperature {manifest.temperature:.3f}"
    if manifest.temperature_certain not in {None, manifest.temperature}:
        temperature += f" (undecided) to {manifest.temperature_certain:.3f} (certain)"
    calibration = f"{test['calibration_error']:.2%} with {temperature}, {test['calibration_error_before']:.2%} without"
    epochs = (manifest.finetune or manifest.recipe)["epochs"]
    of = f"{manifest.parent}'s, " if manifest.quantisation else ""
    training = f"{of}{epochs} epochs in {clock(manifest.training_seconds)} on {manifest.machine}, {manifest.precision}"
    libraries = ", ".join(f"{name} {number}" for name, number in manifest.libraries.items())
    finetuned = _finetune_rows(manifest)
    path.write_text(f"""# {manifest.name}, version {manifest.version}

Tells {len(manifest.classes)} classes apart: {", ".join(manifest.classes)}.

| | |
| --- | --- |
| test accuracy | {accuracy}, one view a picture, {test["count"]:,} pictures |
| macro F1 | {test["macro_f1"]:.2%} |
| calibration error | {calibration} |{_robustness(manifest)}
| network | `{manifest.architecture}` {manifest.arguments}, input {size} x {size} |
| training | {training} |
| data | {counts}; SHA-256 `{data.sha256}`.{made} |
| seed | {manifest.seed} |
| libraries | {libraries} |
{finetuned}{_quantisation_rows(manifest)}
Made by:

    {manifest.command}

Each class on the test split:

| class | precision | recall | F1 | pictures |
| --- | --- | --- | --- | --- |
{rows}

![curves](curves.png)
![confusion](confusion.png)
![reliability](reliability.png)

The answer is always one of these classes, also for a picture of something else: look at the probability. The figures
hold for pictures like those it was trained on.
""")


def _robustness(manifest: Manifest) -> str:
    found = manifest.metrics.get("robustness")
    if found is None:
        return ""
    attack = found["attack"]
    return (
        f"\n| robust accuracy | {found['accuracy']:.2%} of {found['count']:,} pictures, every pixel moved by up to "
        f"{attack['radius']:g}/255 in {attack['steps']} steps against the network |"
    )
