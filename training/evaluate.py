"""How good a classifier is: accuracy, loss, calibration, and where it errs."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.convolution import fast_convolutions
from training.data import Split
from training.device import CPU

_PIXELS = 500 * 32 * 32  # of the pictures that are computed at once
_BINS = 15  # of the calibration error, as in Guo et al. 2017


@dataclass(frozen=True)
class Scores:
    """Mean cross entropy in nats, the share of right answers and the mean F1 of the classes that occur, 0 to 1."""

    loss: float
    accuracy: float
    macro_f1: float


@torch.inference_mode()
def logits(
    network: Callable[[Tensor], Tensor],
    prepare: Callable[[Tensor], Tensor],
    images: Tensor,
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Float32 logits [N, classes] on the CPU of pictures uint8 [N, 3, H, W].

    `prepare` turns a batch of them into the network's input.
    """
    rows = []
    for batch in images.split(max(1, _PIXELS // images.shape[-1] ** 2)):
        ready = prepare(batch.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32), fast_convolutions(device):
            rows.append(network(ready).float().cpu())
    return torch.cat(rows)


def answers(script: Callable[[Tensor], Tensor], images: Tensor, device: torch.device = CPU) -> Tensor:
    """Calibrated logits float32 [N, classes] of an exported file, which takes uint8 [N, 3, H, W] as it is."""
    return logits(script, lambda batch: batch, images, device)


def score(
    network: nn.Module,
    prepare: Callable[[Tensor], Tensor],
    split: Split,
    device: torch.device,
    precision: torch.dtype,
) -> Scores:
    """Score a split with the network in evaluation mode; it is left in that mode."""
    network.eval()
    out = logits(network, prepare, split.images, device, precision)
    return scores(out, split.labels)


def scores(out: Tensor, labels: Tensor) -> Scores:
    """Score logits float [N, classes] against labels int64 [N]."""
    classes = per_class(confusion(out, labels), map(str, range(out.shape[1])))
    return Scores(float(F.cross_entropy(out, labels)), accuracy(out, labels), macro_f1(classes))


def accuracy(out: Tensor, labels: Tensor) -> float:
    """Share of rows of `out` [N, classes] whose largest value is at the label."""
    return float((out.argmax(1) == labels).double().mean())


def accuracy_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share measured on `count` pictures (Wilson 1927)."""
    z = 1.959964
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (middle - half) / scale, (middle + half) / scale


def reliability(out: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Confidence beside accuracy: pictures in 15 bins of equal width by their largest probability (arXiv:1706.04599).

    Args:
        out: logits float [N, classes].
        labels: int64 [N].

    Returns:
        For each bin that holds any, from low to high: mean `confidence`, `accuracy`, both 0 to 1, and `count`.
    """
    confidence, answer = out.softmax(1).max(1)
    right = (answer == labels).double()
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1)
    return [
        {
            "confidence": float(confidence[inside].double().mean()),
            "accuracy": float(right[inside].mean()),
            "count": int(inside.sum()),
        }
        for inside in (bins == index for index in bins.unique())
    ]


def calibration_error(out: Tensor, labels: Tensor) -> float:
    """Expected calibration error: mean distance of confidence from accuracy over the bins of `reliability`."""
    rows = reliability(out, labels)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(labels)


def confusion(out: Tensor, labels: Tensor) -> Tensor:
    """Counts int64 [classes, classes]: a row for each true class, a column for each answer."""
    classes = out.shape[1]
    return torch.bincount(labels * classes + out.argmax(1), minlength=classes**2).view(classes, classes)


def per_class(matrix: Tensor, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and count of each class, from a confusion matrix; 0 where nothing was answered."""
    hits = matrix.diagonal().double()
    precision = hits / matrix.sum(0).clamp(min=1)
    recall = hits / matrix.sum(1).clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "count": int(matrix[index].sum()),
        }
        for index, name in enumerate(names)
    }


def macro_f1(classes: Mapping[str, Mapping[str, float]]) -> float:
    """Mean F1 of the classes that occur, from `per_class`."""
    found = [row["f1"] for row in classes.values() if row["count"]]
    return sum(found) / len(found)


def metrics(out: Tensor, labels: Tensor, names: Iterable[str]) -> dict[str, object]:
    """All figures of one split, ready for JSON, from calibrated logits float [N, classes]."""
    share = accuracy(out, labels)
    matrix = confusion(out, labels)
    classes = per_class(matrix, names)
    return {
        "count": len(labels),
        "accuracy": share,
        "accuracy_interval_95": list(accuracy_interval(share, len(labels))),
        "macro_f1": macro_f1(classes),
        "loss": float(F.cross_entropy(out.double(), labels)),
        "calibration_error": calibration_error(out, labels),
        "reliability": reliability(out, labels),
        "per_class": classes,
        "confusion": matrix.tolist(),
    }
