"""Optimisers and schedules: what each parameter gets, and how the rate runs."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training.layers import layers
from training.optim import FilterMuon, make_optimizers, rate, retire, set_rates
from training.recipe import Optimizer, Schedule
from training.resnet import build

NAMES = ("sgd", "adam", "adamw", "muon")


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("fast_resnet", 4, {"widths": [8, 16, 16]})


def settings_of(name: str, **values: Any) -> Optimizer:
    return Optimizer.model_validate({"name": name, "learning_rate": 0.1, **values})


def step(filters: Tensor, gradient: Tensor, lr: float = 1.0, momentum: float = 0.0, iterations: int = 3) -> Tensor:
    """The filters after one step of FilterMuon."""
    trained = nn.Parameter(filters.clone())
    trained.grad = gradient.clone()
    FilterMuon([trained], lr, momentum, iterations).step()
    return trained.detach()


def rescaled(filters: Tensor) -> Tensor:
    """The filters with a norm of the square root of their number."""
    return nn.functional.normalize(filters.flatten(), dim=0).view_as(filters) * math.sqrt(len(filters))


@settings(max_examples=40)
@given(outputs=st.integers(2, 48), inputs=st.integers(1, 16), side=st.sampled_from([1, 3]), seed=st.integers(0, 999))
def test_muon_update_is_nearly_orthogonal(outputs: int, inputs: int, side: int, seed: int) -> None:
    torch.manual_seed(seed)
    filters, gradient = torch.randn(2, outputs, inputs, side, side)
    update = (rescaled(filters) - step(filters, gradient, iterations=6)).flatten(1)
    left, values, right = torch.linalg.svd(gradient.flatten(1).double(), full_matrices=False)
    # The iteration pulls every singular value that is not tiny to about one and keeps the directions.
    large = values > 0.02 * values.norm()
    inside = left[:, large].T @ update.double() @ right[large].T
    found = torch.linalg.svdvals(inside)
    assert found.min() > 0.5
    assert found.max() < 1.4
    aligned = inside.diagonal().sum() / (inside.norm() * math.sqrt(len(inside)))
    assert aligned > 0.9


def test_three_iterations_are_enough_for_typical_gradients() -> None:
    torch.manual_seed(0)
    filters, gradient = torch.randn(2, 64, 64, 3, 3)
    values = torch.linalg.svdvals((rescaled(filters) - step(filters, gradient)).flatten(1))
    assert values.min() > 0.6
    assert values.max() < 1.3


@given(scale=st.floats(1e-4, 1e4), seed=st.integers(0, 99))
def test_muon_update_does_not_depend_on_the_size_of_the_gradient(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    filters, gradient = torch.randn(2, 12, 3, 3, 3)
    torch.testing.assert_close(step(filters, gradient * scale), step(filters, gradient), atol=0.05, rtol=0)


def test_muon_rescales_each_filter_bank() -> None:
    torch.manual_seed(0)
    filters = 5 * torch.randn(16, 4, 3, 3)
    after = step(filters, torch.randn_like(filters), lr=1e-9)
    assert float(after.norm()) == pytest.approx(4, rel=1e-5)
    torch.testing.assert_close(after / after.norm(), filters / filters.norm())


def test_muon_momentum_is_nesterov() -> None:
    torch.manual_seed(0)
    filters, first, second = torch.randn(3, 6, 2, 3, 3)
    trained = nn.Parameter(filters.clone())
    optimizer = FilterMuon([trained], lr=0.5, momentum=0.9)
    trained.grad = first.clone()
    optimizer.step()
    before = trained.detach().clone()
    trained.grad = second.clone()
    optimizer.step()
    # The momentum is 0.9 x first + second; Nesterov looks one step ahead of it.
    ahead = second + 0.9 * (0.9 * first + second)
    torch.testing.assert_close(trained.detach(), step(before, ahead, lr=0.5))


def test_muon_passes_over_filters_without_a_gradient() -> None:
    filters = nn.Parameter(torch.ones(4, 2, 3, 3))
    FilterMuon([filters], lr=1.0, momentum=0.9).step()
    assert torch.equal(filters, torch.ones(4, 2, 3, 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("architecture", ["fast_resnet", "resnet20"])
def test_every_trained_parameter_is_in_one_group(name: str, architecture: str) -> None:
    model = build(architecture, 4, {})
    groups = [group for optimizer in make_optimizers(model, settings_of(name)) for group in optimizer.param_groups]
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert all(group["initial_lr"] == group["lr"] > 0 for group in groups)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_norms_and_biases_get_no_weight_decay(name: str) -> None:
    model = build("resnet20", 4, {})
    (optimizer,) = make_optimizers(model, settings_of(name, weight_decay=0.25))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            is_matrix = isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and parameter.ndim == 2)
            assert decay[id(parameter)] == (0.25 if is_matrix else 0)


def test_muon_gives_filters_head_and_shifts_their_own_rates() -> None:
    model = network()
    chosen = settings_of("muon", head_learning_rate=300, bias_learning_rate=20, weight_decay=1e-3, momentum=0.6)
    rest, filters = make_optimizers(model, chosen)
    assert isinstance(filters, FilterMuon)
    assert {p.ndim for group in filters.param_groups for p in group["params"]} == {4}
    head, shifts = rest.param_groups
    assert [tuple(p.shape) for p in head["params"]] == [(4, 16)]
    assert {p.ndim for p in shifts["params"]} == {1}
    assert (head["lr"], shifts["lr"], filters.param_groups[0]["lr"]) == (300, 20, 0.1)
    # What one step at the full rate takes away is the same share of both.
    assert [group["lr"] * group["weight_decay"] for group in (head, shifts)] == pytest.approx([1e-3, 1e-3])


def test_muon_trains_the_bias_of_the_whitening_layer_at_the_beginning() -> None:
    model = build("fast_resnet", 4, {"widths": [8, 16, 16], "whiten_bias": True})
    optimizers = make_optimizers(model, settings_of("muon", bias_learning_rate=20))
    _, shifts, whiten = optimizers[0].param_groups
    assert [id(p) for p in whiten["params"]] == [id(model.get_parameter("whiten.bias"))]
    rates = []
    for done in (0, 3 / 16, 3 / 8, 3 / 4):
        set_rates(optimizers, Schedule(shape="linear"), done)
        rates += [shifts["lr"], whiten["lr"]]
    assert rates == pytest.approx([20, 20, 20 * 13 / 16, 10, 20 * 5 / 8, 0, 5, 0])


@pytest.mark.parametrize(
    "chosen",
    [
        Schedule(shape="constant"),
        Schedule(shape="one-cycle", warmup=0.3),
        Schedule(shape="step", milestones=(0.5,), factor=0.1),
    ],
    ids=lambda chosen: chosen.shape,
)
def test_what_is_trained_at_the_beginning_only_rests_later_whatever_the_schedule_ends_at(chosen: Schedule) -> None:
    model = build("fast_resnet", 4, {"widths": [8, 16, 16], "whiten_bias": True})
    optimizers = make_optimizers(model, settings_of("muon"))
    _, shifts, whiten = optimizers[0].param_groups
    for done, rests in ((0.37, False), (3 / 8, True), (0.9, True)):
        set_rates(optimizers, chosen, done)
        assert (whiten["lr"] == 0) == rests
        assert shifts["lr"] > 0


def test_a_parameter_that_is_trained_at_the_beginning_only_asks_for_no_gradient_later() -> None:
    model = build("fast_resnet", 4, {"widths": [8, 16, 16], "whiten_bias": True})
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    optimizers = make_optimizers(model, settings_of("muon"))
    retire(optimizers, 0.37)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == learns
    retire(optimizers, 3 / 8)
    assert [name for name in learns if not model.get_parameter(name).requires_grad] == ["whiten.bias"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_nesterov_where_there_is_momentum(momentum: float) -> None:
    (optimizer,) = make_optimizers(network(), settings_of("sgd", momentum=momentum))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["nesterov"] == (momentum > 0) for group in optimizer.param_groups)
    assert all(group["momentum"] == momentum for group in optimizer.param_groups)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_and_adamw_are_torchs(name: str, kind: type) -> None:
    (optimizer,) = make_optimizers(network(), settings_of(name))
    assert type(optimizer) is kind


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int, seed: int) -> float:
    """Fit random pictures and give back the last loss."""
    generator = torch.Generator().manual_seed(seed)
    pictures, labels = torch.randn(16, 3, 16, 16, generator=generator), torch.arange(16) % 4
    loss = torch.zeros(())
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(pictures), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()


RATES = {"sgd": 0.05, "adam": 0.005, "adamw": 0.005, "muon": 0.05}


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns(name: str) -> None:
    model = network()
    optimizers = make_optimizers(model, settings_of(name, learning_rate=RATES[name]))
    first = train(model, optimizers, 1, seed=0)
    assert train(model, optimizers, 30, seed=0) < 0.5 * first


@pytest.mark.parametrize("name", NAMES)
def test_saved_state_goes_on_the_same(name: str) -> None:
    whole = network()
    optimizers = make_optimizers(whole, settings_of(name, learning_rate=RATES[name]))
    train(whole, optimizers, 3, seed=0)
    again = network()
    again.load_state_dict(whole.state_dict())
    resumed = make_optimizers(again, settings_of(name, learning_rate=RATES[name]))
    for optimizer, saved in zip(resumed, optimizers, strict=True):
        optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert train(whole, optimizers, 3, seed=1) == train(again, resumed, 3, seed=1)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


SHAPES = st.sampled_from(["constant", "linear", "cosine"])
SHARES = st.floats(0, 1)


def schedule(shape: str, warmup: float) -> Schedule:
    return Schedule.model_validate({"shape": shape, "warmup": warmup})


@given(shape=SHAPES, warmup=st.floats(0, 0.99), done=SHARES)
def test_rate_is_a_share(shape: str, warmup: float, done: float) -> None:
    assert 0 <= rate(schedule(shape, warmup), done) <= 1


@given(shape=SHAPES, warmup=st.floats(0.01, 0.9), one=SHARES, other=SHARES)
def test_rate_rises_while_warming_up_and_never_after(shape: str, warmup: float, one: float, other: float) -> None:
    early, late = sorted((one, other))
    chosen = schedule(shape, warmup)
    if late < warmup:
        assert rate(chosen, early) <= rate(chosen, late)
    elif early >= warmup:
        assert rate(chosen, early) >= rate(chosen, late)


@given(shape=SHAPES, warmup=st.floats(0.01, 0.9))
def test_warm_up_is_a_straight_line_to_the_full_rate(shape: str, warmup: float) -> None:
    chosen = schedule(shape, warmup)
    assert rate(chosen, 0) == 0
    assert rate(chosen, warmup / 4) == pytest.approx(0.25)
    assert rate(chosen, math.nextafter(warmup, 0)) == pytest.approx(1)
    assert rate(chosen, warmup) == 1


def test_shapes() -> None:
    quarters = (0, 0.25, 0.5, 0.75, 1)
    expected = {
        "constant": [1, 1, 1, 1, 1],
        "linear": [1, 0.75, 0.5, 0.25, 0],
        "cosine": [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0],
    }
    for shape, values in expected.items():
        assert [rate(schedule(shape, 0), done) for done in quarters] == pytest.approx(values)
        # With a warm-up the same shape runs over what is left.
        assert [rate(schedule(shape, 0.2), 0.2 + 0.8 * done) for done in quarters] == pytest.approx(values)


@pytest.mark.parametrize("name", NAMES)
def test_earlier_layers_learn_at_smaller_shares_of_the_same_rates(name: str) -> None:
    model = network()
    plain, spread = (
        {
            id(parameter): group["initial_lr"]
            for optimizer in make_optimizers(model, settings_of(name, first_layer_share=share))
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for share in (1.0, 0.0625)
    )
    shares = [
        {round(spread[id(p)] / plain[id(p)], 6) for p in layer.parameters() if p.requires_grad}
        for layer in layers(model)
    ]
    assert shares == [set(), {0.125}, {0.25}, {0.5}, {1.0}]


def test_relative_rates_follow_the_size_of_each_parameter() -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.02 if parameter.ndim > 1 else 0)
    (optimizer,) = make_optimizers(model, settings_of("adamw", relative=True))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(0.1 * (0.02 if parameter.ndim > 1 else 1))


def test_step_decay_falls_at_its_milestones() -> None:
    chosen = Schedule(shape="step", milestones=(0.3, 0.6), factor=0.1)
    assert [rate(chosen, done) for done in (0, 0.29, 0.3, 0.59, 0.6, 1)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_one_cycle_is_torchs() -> None:
    steps = 101
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, pct_start=31 / steps)
    chosen = Schedule(shape="one-cycle", warmup=0.3)  # for torch the peak is the 31st of 101 steps
    for step in range(steps):
        assert rate(chosen, step / (steps - 1)) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shape": "step"}, "need each other"),
        ({"shape": "cosine", "milestones": [0.5]}, "need each other"),
        ({"shape": "one-cycle"}, "needs schedule.warmup"),
    ],
)
def test_schedules_that_lack_something(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule.model_validate(settings)
