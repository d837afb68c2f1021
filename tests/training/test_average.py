"""The moving average of weights."""

import torch
from torch import nn

from training.average import Average


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_it_is_the_weighted_mean_of_all_steps() -> None:
    live = network()
    average = Average(live, decay=0.5)
    expected = live.get_parameter("0.weight").detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            live.get_parameter("0.weight").add_(step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * live.get_parameter("0.weight").detach()
    torch.testing.assert_close(average.network.get_parameter("0.weight").detach(), expected)


def test_norm_statistics_are_averaged_and_batches_counted() -> None:
    live = network()
    average = Average(live, decay=0.9)
    live(5 + torch.randn(8, 3, 6, 6))
    average.update()
    kept = average.network.state_dict()
    assert kept["1.num_batches_tracked"] == 1
    share = 1 - 2 / 11
    torch.testing.assert_close(kept["1.running_mean"], share * live.get_buffer("1.running_mean"))


def test_the_network_itself_is_left_alone() -> None:
    live = network()
    before = {name: value.clone() for name, value in live.state_dict().items()}
    average = Average(live, decay=0.9)
    average.update()
    torch.testing.assert_close(live.state_dict(), before, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert all(parameter.requires_grad for parameter in live.parameters())


def test_a_restored_average_goes_on_the_same() -> None:
    live = network()
    one, other = Average(live, decay=0.9), Average(live, decay=0.9)
    one.update()
    other.restore(one.state())
    with torch.no_grad():
        live.get_parameter("0.weight").add_(1)
    one.update()
    other.update()
    torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=0, atol=0)
