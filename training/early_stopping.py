"""Early stopping: the best epoch of a run, its weights, and when to give up waiting for a better one."""

from typing import Any

from torch import Tensor, nn

from training.evaluate import Scores
from training.recipe import EarlyStopping


class BestEpoch:
    """Remembers the epoch with the best validation score and the network's weights after it.

    Without settings it remembers nothing and never gives up.
    """

    def __init__(self, settings: EarlyStopping | None) -> None:
        self._settings = settings
        self._score: tuple[float, ...] = ()
        self._weights: dict[str, Tensor] = {}
        self.epoch = 0

    def consider(self, epoch: int, scores: Scores, network: nn.Module) -> None:
        """Take note of an epoch, numbered from 1; of equal ones the earlier stays the best."""
        if self._settings is None:
            return
        # Small validation splits give many equal shares; the loss decides between them.
        better = {
            "loss": (-scores.loss,),
            "accuracy": (scores.accuracy, -scores.loss),
            "macro_f1": (scores.macro_f1, -scores.loss),
        }[self._settings.metric]
        if not self._weights or better > self._score:
            self._score, self.epoch = better, epoch
            self._weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def is_over(self, epochs: int) -> bool:
        """Whether patience ran out after so many epochs."""
        return bool(self._settings and self._weights and epochs - self.epoch >= self._settings.patience)

    def apply(self, network: nn.Module) -> None:
        """Give the network the best epoch's weights, if any are remembered."""
        if self._weights:
            network.load_state_dict(self._weights)

    def state(self) -> dict[str, Any]:
        """What `restore` needs, for a checkpoint."""
        return {"epoch": self.epoch, "score": list(self._score), "weights": self._weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.epoch, self._score, self._weights = state["epoch"], tuple(state["score"]), state["weights"]
