"""The head alone: multinomial logistic regression on the features of a network that stays as it is."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import evaluate
from training.balance import picture_weights
from training.device import one_thread
from training.errors import InputError
from training.evaluate import Scores
from training.layers import without_head
from training.normalisation import Normalisation
from training.split import folds

FOLDS = 5
_PIXELS = 64 * 64 * 64  # of the pictures between two reports of progress: well under a second on a CPU
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the pull towards the start that cross-validation chooses from
_CROSS_VALIDATED = 1000  # pictures, so that the choice takes seconds


@torch.inference_mode()
def features(
    network: nn.Module,
    normalise: Normalisation,
    images: Tensor,
    device: torch.device,
    report: Callable[[int], None],
) -> Tensor:
    """What the head would take, float32 [N, width] on the CPU, of pictures uint8 [N, 3, H, W].

    Args:
        network: in evaluation mode, on the device.
        report: is told how many pictures each step did; what it raises ends the work.
    """
    rows = []
    with without_head(network) as trunk:
        for batch in images.split(max(1, _PIXELS // images.shape[-1] ** 2)):
            ready = normalise(batch.to(device)).contiguous(memory_format=torch.channels_last)
            rows.append(trunk(ready).float().cpu())
            report(len(batch))
    return torch.cat(rows)


@dataclass(frozen=True)
class Examples:
    """Pictures as a head sees them.

    Attributes:
        plain: float64 [N, width], in units of the root mean square of all of them, and a last column of ones if the
            head has a bias.
        mirrored: the same of the mirrored pictures; None if they are not shown.
        labels: int64 [N].
        clusters: int64 [N], equal for near-duplicates.
        balanced: whether every class weighs the same.
    """

    plain: Tensor
    mirrored: Tensor | None
    labels: Tensor
    clusters: Tensor
    balanced: bool

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Tensor) -> "Examples":
        """Those that `chosen` (bool [N] or int64 indices) names."""
        mirrored = None if self.mirrored is None else self.mirrored[chosen]
        return Examples(self.plain[chosen], mirrored, self.labels[chosen], self.clusters[chosen], self.balanced)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, labels and weights of all pictures, then of their mirror images."""
        weights = picture_weights(self.labels) if self.balanced else torch.ones(len(self))
        if self.mirrored is None:
            return self.plain, self.labels, weights
        return torch.cat([self.plain, self.mirrored]), self.labels.repeat(2), weights.repeat(2)


class Scale:
    """Turns a head's weights and a network's features into the units in which a head is fitted, and back."""

    def __init__(self, found: Tensor, bias: bool) -> None:
        self._unit = float(found.double().square().mean().sqrt()) or 1.0
        self._bias = bias

    def features(self, found: Tensor) -> Tensor:
        """Features float32 [N, width] to the columns of `Examples`."""
        scaled = found.double() / self._unit
        return torch.cat([scaled, torch.ones(len(scaled), 1).double()], dim=1) if self._bias else scaled

    def matrix(self, head: nn.Linear) -> Tensor:
        """A head's weights as float64 [classes, columns]."""
        weight = head.weight.detach().cpu().double() * self._unit
        return torch.cat([weight, head.bias.detach().cpu().double().unsqueeze(1)], dim=1) if self._bias else weight

    @torch.no_grad()
    def write(self, matrix: Tensor, head: nn.Linear) -> None:
        """Give a head the weights of a matrix."""
        width = head.in_features
        head.weight.copy_(matrix[:, :width] / self._unit)
        if self._bias:
            head.bias.copy_(matrix[:, width])


def fit(examples: Examples, start: Tensor, strength: float, fixed: int = 0) -> Tensor:
    """Weights float64 [classes, columns] of the least cross entropy plus `strength` times the squared way from `start`.

    The problem is convex: L-BFGS finds its one solution without a learning rate.

    Args:
        start: float64 [classes, columns].
        fixed: so many first classes keep their weights.
    """
    free = start[fixed:].clone().requires_grad_()
    rows, labels, weights = examples.rows()
    optimizer = torch.optim.LBFGS([free], max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        out = rows @ torch.cat([start[:fixed], free]).T
        loss = (weights * F.cross_entropy(out, labels, reduction="none")).mean()
        loss = loss + strength * (free - start[fixed:]).square().sum()
        loss.backward()
        return loss

    with one_thread():
        optimizer.step(closure)
    return torch.cat([start[:fixed], free.detach()])


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose, and the scores of each fold with it.

    Attributes:
        strength: of the pull towards the start.
        mirrored: whether mirrored pictures are worth showing; they are not of letters and digits.
        folds: scores on each fold of a head that was fitted without it.
        count: pictures in all folds.
    """

    strength: float
    mirrored: bool
    folds: Sequence[Scores]
    count: int

    def figures(self) -> Mapping[str, Any]:
        """Mean and standard deviation over the folds, ready for JSON."""
        return {
            "method": "head on frozen features",
            "folds": len(self.folds),
            "count": self.count,
            "accuracy": statistics.mean(fold.accuracy for fold in self.folds),
            "accuracy_deviation": statistics.stdev(fold.accuracy for fold in self.folds),
            "macro_f1": statistics.mean(fold.macro_f1 for fold in self.folds),
        }


def cross_validate(examples: Examples, start: Tensor, fixed: int, seed: int) -> Choice:
    """Choose what to fit a head with by the loss on pictures that it was not fitted on.

    Mirrored pictures are left out only if that is better in every fold.

    Raises:
        InputError: the pictures all repeat one another, so that none can be held out.
    """
    if len(examples) > _CROSS_VALIDATED:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
        examples = examples.subset(order[:_CROSS_VALIDATED])
    fold = folds(examples.labels, examples.clusters, FOLDS, seed)
    used = [index for index in range(FOLDS) if (fold == index).any() and (fold != index).any()]
    if not used:
        raise InputError(
            f"All {len(examples)} training pictures nearly repeat one another, so a head that is fitted to some cannot "
            "be judged on others. Add different pictures, and put each into the folder of one class only."
        )

    def best(shown: Examples) -> Choice:
        tried = [
            Choice(
                strength=strength,
                mirrored=shown.mirrored is not None,
                folds=[_held_out(shown, fold == index, start, strength, fixed) for index in used],
                count=len(shown),
            )
            for strength in _STRENGTHS
        ]
        return min(tried, key=lambda choice: statistics.mean(fold.loss for fold in choice.folds))

    plain, both = best(dataclasses.replace(examples, mirrored=None)), best(examples)
    worse = all(with_.loss > without.loss for with_, without in zip(both.folds, plain.folds, strict=True))
    return plain if worse else both


def _held_out(examples: Examples, fold: Tensor, start: Tensor, strength: float, fixed: int) -> Scores:
    """Scores on one fold (bool [N]) of a head that was fitted on the others."""
    matrix = fit(examples.subset(~fold), start, strength, fixed)
    left = examples.subset(fold)
    return evaluate.scores(left.plain @ matrix.T, left.labels)
