"""Packaging: the files of a version that follow from a trained network, and the network that they give again."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from training import artifact, data, evaluate, export, probe, report, resnet
from training.adversarial import robust_accuracy, strong
from training.artifact import Manifest
from training.calibration import Calibration
from training.device import CPU, exact
from training.errors import ArtifactError, TrainingError
from training.normalisation import Normalisation
from training.novelty import Neighbours
from training.quantiser import quantised
from training.recipe import Recipe

# The script and the eager network do the same float32 arithmetic, in a different order at most.
_SCRIPT_TOLERANCE = 1e-3
_CHECKED = 500  # validation pictures that a file which was made on another device is checked with
_LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "safetensors")


def write_network(
    folder: Path,
    network: nn.Module,
    normalise: Normalisation,
    parts: data.Partition,
    classes: Sequence[str],
    recipe: Recipe,
    device: torch.device,
) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate a network and write all files of a version that follow from it.

    Args:
        folder: of `artifact.new_version`.
        device: where pictures are scored, in float32. The exported file has to answer all validation pictures there as
            the network does, and if that is not the CPU some of them on the CPU too.

    Returns:
        The calibration that was fitted on the validation split, and the metrics of the file that is served.

    Raises:
        ArtifactError: the exported file disagrees with the network.
        TrainingError: the network's answers are not finite.
    """
    weights = stored(network.cpu(), recipe.weights)
    network.load_state_dict(weights)  # from here on the network is what the file holds, rounding included
    network.to(device).eval()
    (folder / artifact.WEIGHTS).write_bytes(save(weights))
    with exact(device), export.unoptimised():
        held_out = evaluate.logits(network, normalise, parts.validation.images, device)
        _check_finite(held_out, recipe)
        calibration = Calibration.fit(held_out, parts.validation.labels)
        Neighbours.of(network, normalise, parts.train.images, device).write(folder / artifact.NEIGHBOURS)
        attacked = robustness(network, normalise, parts, recipe)
        served = export.Served(network, normalise, calibration)
        export.save_script(served, recipe.network.input_size, folder / artifact.SCRIPT)
        script = export.load_script(folder / artifact.SCRIPT, device)
        check_agreement(script, parts.validation.images, calibration(held_out), device)
        metrics = _metrics(script, parts, classes, device)
    if device != CPU:
        script = export.load_script(folder / artifact.SCRIPT, CPU)
        check_agreement(script, parts.validation.images[:_CHECKED], calibration(held_out[:_CHECKED]))
    probe.write(folder / probe.PROBE, _probe(script, parts.train.images))
    return calibration, metrics | attacked


def _check_finite(out: Tensor, recipe: Recipe) -> None:
    if not out.isfinite().all():
        raise TrainingError(
            f"The network's answers are not finite with its weights stored in {recipe.weights}. Lower "
            "optimizer.learning_rate, or store them in float32 (weights=float32). Nothing was written."
        )


def write_report(folder: Path, manifest: Manifest) -> Manifest:
    """Write the card and its pictures, and as the last file the manifest, with the hash of every other one."""
    test = manifest.metrics["test"]
    pictures = pictures_folder(folder)
    report.write_confusion(test["confusion"], manifest.classes, pictures / "confusion.png")
    report.write_reliability(test["reliability"], pictures / "reliability.png")
    report.write_card(manifest, pictures / "card.md")
    manifest = manifest.model_copy(update={"files": artifact.record_files(folder)})
    artifact.write_manifest(folder, manifest)
    return manifest


def pictures_folder(folder: Path) -> Path:
    pictures = folder / "report"
    pictures.mkdir(exist_ok=True)
    return pictures


def libraries() -> dict[str, str]:
    """Versions of what a version is made with."""
    return {"python": platform.python_version()} | {name: library_version(name) for name in _LIBRARIES}


def _probe(script: Callable[[Tensor], Tensor], images: Tensor) -> probe.Probe:
    chosen = images[torch.from_numpy(probe.choose(len(images)))].contiguous()
    out = evaluate.answers(script, chosen)
    return probe.Probe(chosen.numpy(), out.softmax(1).numpy())


def stored(network: nn.Module, format_: str) -> dict[str, Tensor]:
    """The weights as they are written, in float32 or float16; integers stay what they are.

    Vectors stay float32: they are small, and norm statistics need the range.
    """
    half = format_ == "float16"
    return {
        name: (value.half() if half and value.ndim > 1 and value.is_floating_point() else value).contiguous().clone()
        for name, value in network.state_dict().items()
    }


def check_agreement(
    script: Callable[[Tensor], Tensor], images: Tensor, expected: Tensor, device: torch.device = CPU
) -> None:
    """Score pictures through an exported file and compare with the network that it came from.

    Args:
        script: takes uint8 [N, 3, H, W], on `device`.
        images: uint8 [N, 3, H, W].
        expected: calibrated logits float [N, classes] of the eager network.

    Raises:
        ArtifactError: any answer differs, or any logit by more than the tolerance.
    """
    got = evaluate.answers(script, images, device)
    distance = float((got - expected).abs().max())
    different = int((got.argmax(1) != expected.argmax(1)).sum())
    if not distance <= _SCRIPT_TOLERANCE or different:
        raise ArtifactError(
            f"The exported file disagrees with the network it came from: {different} other answers, logits up to "
            f"{distance:.2g} apart. Nothing was written; this is a defect of the exporter or of torch."
        )


def _metrics(
    script: export.Script, parts: data.Partition, classes: Sequence[str], device: torch.device
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, split in (("validation", parts.validation), ("test", parts.test)):
        uncalibrated = evaluate.logits(script.network, script.preprocess, split.images, device)
        calibrated = script.calibration(uncalibrated.to(device)).cpu()
        found[name] = evaluate.metrics(calibrated, split.labels, classes) | {
            "calibration_error_before": evaluate.calibration_error(uncalibrated, split.labels)
        }
    return found


def robustness(network: nn.Module, normalise: Normalisation, parts: data.Partition, recipe: Recipe) -> dict[str, Any]:
    """For an adversarially trained network, how much of the test split it still answers rightly when attacked.

    Returns:
        Ready for a manifest's metrics; nothing for other networks.
    """
    if recipe.adversarial is None:
        return {}
    attack = strong(recipe.adversarial.radius)
    accuracy = robust_accuracy(network, normalise, parts.test, attack, seed=0)
    return {"robustness": {"attack": asdict(attack), "accuracy": accuracy, "count": len(parts.test)}}


def restore(folder: Path, manifest: Manifest) -> nn.Module:
    """The network of a verified version, from its weights, in evaluation mode: float32, or in simulated integers."""
    network = resnet.build(manifest.architecture, len(manifest.classes), manifest.arguments).eval()
    if manifest.quantisation is not None:
        network = quantised(network)
    network.load_state_dict(load((folder / artifact.WEIGHTS).read_bytes()))
    return network.eval()
