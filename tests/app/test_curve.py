"""Cost curves: which batch size they choose, and when measuring ends."""

import pytest

from app.serving import curve
from app.serving.curve import Curve


@pytest.mark.parametrize(
    ("seconds", "batch", "rate"),
    [
        ({1: 1.0}, 1, 1),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 4, 4),  # a batch costs what a picture costs
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1, 1),  # batches bring nothing
        ({1: 1.0, 2: 1.5, 4: 2.95, 8: 5.9}, 2, 8 / 5.9),  # the last bit is not worth the wait
        ({1: 1.0, 2: 1.5, 4: 6.0}, 2, 2 / 1.5),
    ],
)
def test_smallest_batch_at_nearly_the_highest_rate(seconds: dict[int, float], batch: int, rate: float) -> None:
    assert Curve(seconds).batch == batch
    assert Curve(seconds).rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("seconds", "size"),
    [({1: 1.0}, 1), ({1: 1.0, 2: 1.0}, 1), ({1: 1.0, 2: 1.0, 4: 1.0}, 2), ({1: 1.0, 2: 1.0, 4: 4.0}, 1)],
)
def test_smallest_batch_at_half_the_highest_rate(seconds: dict[int, float], size: int) -> None:
    assert Curve(seconds).within(2) == size


@pytest.mark.parametrize(("size", "seconds"), [(1, 1), (2, 3), (3, 4), (4, 4), (8, 8)])
def test_estimate_is_that_of_the_next_larger_batch(size: int, seconds: float) -> None:
    assert Curve({1: 1, 2: 3, 4: 4}).estimate(size) == seconds


@pytest.mark.parametrize(("seconds", "size"), [({1: 0.02, 2: 0.02, 4: 0.04}, 2), ({1: 0.001, 2: 0.002}, 10)])
def test_batch_that_takes_long_is_worth_dividing(seconds: dict[int, float], size: int) -> None:
    assert Curve(seconds).undivided == size - 1


def test_batch_of_pictures_that_cost_little_is_not_divided_however_long_it_takes() -> None:
    assert Curve({1: 0.001, 64: 0.0128}).undivided > 1e9
    assert Curve({1: 0.001, 64: 0.0256}).undivided == 24


def test_all_threads_compute_what_is_not_divided() -> None:
    curve = Curve({1: 0.001, 2: 0.002, 16: 0.012})
    assert (curve.undivided, curve.batch) == (13, 16)
    assert (curve.whole(divided=True), curve.whole(divided=False)) == (13, 16)
    flat = Curve({1: 0.001, 2: 0.002})
    assert (flat.whole(divided=True), flat.whole(divided=False)) == (1, 1)


def test_every_size_is_measured_while_it_pays() -> None:
    assert list(curve.measure(lambda size: [0] * size, 1).seconds) == [1]
    calls: list[int] = []
    curve.measure(calls.append, 12, hopeless=0)
    assert calls[:7] == [1, 1, 1, 2, 2, 2, 4]  # the first of a size does not count
    assert set(calls) <= {1, 2, 4, 8, 12}
    assert calls.count(1) > 3  # the sizes that were measured take turns afterwards


def test_hopeless_engine_is_not_measured_to_the_end() -> None:
    assert max(curve.measure(lambda _: None, 64, hopeless=1e12).seconds) == 8
