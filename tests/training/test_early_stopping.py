"""Which epoch is the best, and when waiting for a better one ends."""

import torch
from torch import nn

from training.early_stopping import BestEpoch
from training.evaluate import Scores
from training.recipe import EarlyStopping


def numbered(value: float) -> nn.Module:
    """A network that can be told from others by its one weight."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def weight(network: nn.Module) -> float:
    return next(network.parameters()).item()


def test_the_best_epoch_by_the_chosen_metric_is_kept() -> None:
    epochs = [Scores(0.5, 0.7, 0.6), Scores(0.4, 0.6, 0.6), Scores(0.6, 0.8, 0.5), Scores(0.6, 0.8, 0.5)]
    for metric, best in (("loss", 2), ("accuracy", 3), ("macro_f1", 2)):
        kept = BestEpoch(EarlyStopping.model_validate({"metric": metric}))
        for number, scores in enumerate(epochs, start=1):
            kept.consider(number, scores, numbered(number))
        network = numbered(0)
        kept.apply(network)
        assert (kept.epoch, weight(network)) == (best, best)


def test_patience_counts_epochs_since_the_best() -> None:
    kept = BestEpoch(EarlyStopping(metric="loss", patience=2))
    assert not kept.is_over(10)
    for number, loss in enumerate([3.0, 2.0, 2.5, 2.5], start=1):
        assert not kept.is_over(number - 1)
        kept.consider(number, Scores(loss, 0, 0), numbered(number))
    assert kept.is_over(4)


def test_a_restored_one_goes_on_where_it_was() -> None:
    kept = BestEpoch(EarlyStopping(metric="loss"))
    kept.consider(1, Scores(1.0, 0, 0), numbered(1))
    again = BestEpoch(EarlyStopping(metric="loss"))
    again.restore(kept.state())
    again.consider(2, Scores(1.5, 0, 0), numbered(2))
    network = numbered(0)
    again.apply(network)
    assert (again.epoch, weight(network)) == (1, 1)


def test_without_settings_nothing_is_kept() -> None:
    kept = BestEpoch(None)
    kept.consider(1, Scores(1.0, 0, 0), numbered(1))
    network = numbered(7)
    kept.apply(network)
    assert weight(network) == 7
    assert not kept.is_over(1000)
    assert torch.tensor(list(kept.state()["weights"])).numel() == 0
