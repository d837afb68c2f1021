"""Calibration: logits whose softmax can be read as probabilities. The answers stay what they were."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.artifact import CERTAINTY_POWER

_LOG_LIMIT = 3.0  # of temperatures, so e^-3 to e^3: where every answer is wrong, they would rise without end
_CHI_SQUARE_95 = 3.84  # of one degree of freedom: what a second temperature has to gain to be taken (Wilks 1938)


class Calibration(nn.Module):
    """Divides the logits of each picture by a temperature that depends on how certain the network is.

    The inverse temperature goes from that of `undecided` to that of `certain` with the eighth power of the largest
    uncalibrated probability; near the eleventh, the held-out likelihood on CIFAR-10 is greatest, and flat around it.
    With both equal this is temperature scaling (Guo et al. 2017, arXiv:1706.04599); that a temperature should follow
    the network's certainty is due to Balanya et al. (2022, arXiv:2208.00461). Two numbers mend what one cannot: label
    smoothing puts a ceiling on probabilities, below which easy pictures crowd.
    """

    def __init__(self, undecided: float, certain: float | None = None) -> None:
        super().__init__()
        self.undecided = undecided
        self.certain = undecided if certain is None else certain

    def forward(self, logits: Tensor) -> Tensor:
        """Calibrated logits of uncalibrated ones, both float [N, classes]."""
        if self.certain == self.undecided:
            return logits / self.undecided
        return _scaled(logits, 1 / self.undecided, 1 / self.certain)

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor) -> Self:
        """Choose the temperatures under which it is most likely that just these answers are right and those wrong.

        This calibrates the probability of the answer (top-label calibration, Gupta & Ramdas 2022, arXiv:2107.08353),
        which is what users act upon; cross entropy also weighs how the rest is spread over the other classes. A second
        temperature is taken only where it makes the outcome significantly more likely (likelihood-ratio test at 95 %),
        so that a few dozen pictures do not bend the curve. For the same reason n right answers count as right with a
        probability of (n + 1) / (n + 2), and wrong ones likewise (Platt 1999, Probabilistic outputs for support vector
        machines, section 2.2): 38 right answers of 38 are no evidence of more than 97.5 %.

        Args:
            logits: uncalibrated, float [N, classes], of pictures that were not trained on.
            labels: int64 [N].
        """
        values = logits.to(torch.float64, copy=True)
        (one,), loss = _least_loss(values, labels, 1)
        (undecided, certain), lower = _least_loss(values, labels, 2)
        if 2 * len(labels) * (loss - lower) > _CHI_SQUARE_95:
            return cls(undecided, certain)
        return cls(one)


def _scaled(logits: Tensor, undecided: Tensor | float, certain: Tensor | float) -> Tensor:
    """Logits times an inverse temperature between the two given."""
    share = logits.softmax(1).amax(1, keepdim=True) ** CERTAINTY_POWER
    return logits * (undecided + (certain - undecided) * share)


def _least_loss(logits: Tensor, labels: Tensor, count: int) -> tuple[list[float], float]:
    """The best `count` temperatures, and the mean negative log-likelihood of right and wrong under them, in nats."""
    answer = logits.argmax(1)
    right = answer == labels
    believed = torch.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    answered = F.one_hot(answer, logits.shape[1]).bool()
    free = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def inverses() -> Tensor:
        return (-_LOG_LIMIT * free.tanh()).exp()

    def loss() -> Tensor:
        probabilities = _scaled(logits, inverses()[0], inverses()[-1]).log_softmax(1)
        wrong = probabilities.masked_fill(answered, -torch.inf).logsumexp(1)
        return -(believed * probabilities.amax(1) + (1 - believed) * wrong).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        current = loss()
        current.backward()
        return current.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return (1 / inverses()).tolist(), float(loss())
