"""The comparison: a candidate that is worse loses, one that is not does not, and few requests decide nothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.comparison import MIN_ANSWERED, MIN_FAILED, MIN_TIMED, Comparison, Tally, gather, publish

SLOWDOWN = 2.0


def tally(answered: int, failures: int = 0, seconds: float = 0.01) -> Tally:
    """Answers that all took as long."""
    return Tally(answered + failures, failures, answered * seconds, answered * seconds**2)


@pytest.mark.parametrize(
    ("production", "candidate"),
    [
        (tally(380), tally(0, failures=20)),
        (tally(380), tally(17, failures=3)),
        (tally(3800, failures=4), tally(190, failures=10)),
        (tally(MIN_ANSWERED), tally(10, failures=MIN_ANSWERED)),
    ],
)
def test_candidate_that_fails_more_often_loses(production: Tally, candidate: Tally) -> None:
    assert f"failed on {candidate.failures} of {candidate.pictures} pictures" in str(
        Comparison(production, candidate).regression(SLOWDOWN)
    )


@pytest.mark.parametrize(
    ("production", "candidate"),
    [
        (tally(1000), tally(1000)),
        (tally(0), tally(0)),
        (tally(1000), tally(0, failures=MIN_ANSWERED - 1)),  # too few pictures
        (tally(MIN_ANSWERED - 1), tally(0, failures=100)),  # nothing to compare with
        (tally(1000), tally(1000, failures=MIN_FAILED - 1)),  # may be a mishap
        (tally(900, failures=100), tally(90, failures=10)),  # production does so too
        (tally(0, failures=100), tally(0, failures=100)),
    ],
)
def test_candidate_that_fails_as_seldom_stays(production: Tally, candidate: Tally) -> None:
    assert Comparison(production, candidate).regression(SLOWDOWN) is None


def test_slower_candidate_loses() -> None:
    slow = Comparison(tally(MIN_TIMED, seconds=0.01), tally(MIN_TIMED, seconds=0.021))
    assert slow.regression(SLOWDOWN) == "took 21.00 ms a picture, production 10.00 ms; 2 times that was allowed"
    assert slow.regression(max_slowdown=3) is None


def test_few_timings_decide_nothing() -> None:
    assert Comparison(tally(1000), tally(MIN_TIMED - 1, seconds=1)).regression(SLOWDOWN) is None
    assert Comparison(tally(MIN_TIMED - 1), tally(1000, seconds=1)).regression(SLOWDOWN) is None


def test_unsteady_latencies_decide_nothing_alone() -> None:
    """Looked at twice a second for an hour, two versions of the same unsteady latency and failures are both left."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        counted = Comparison()
        for seconds, failed in zip(rng.lognormal(-4, 1.2, (7200, 2)), rng.random((7200, 2)) < 0.01, strict=True):
            counted.production.add(None if failed[0] else seconds[0])
            counted.candidate.add(None if failed[1] else seconds[1])
            assert counted.regression(SLOWDOWN) is None


def test_truly_slower_candidate_loses_in_spite_of_noise() -> None:
    rng = np.random.default_rng(1)
    counted = Comparison()
    for seconds in rng.lognormal(-4, 1.2, (20_000, 2)):
        counted.production.add(seconds[0])
        counted.candidate.add(4 * seconds[1])
        if counted.regression(SLOWDOWN):
            break
    assert counted.regression(SLOWDOWN)


outcomes = st.lists(st.none() | st.floats(1e-4, 10), max_size=30)


@given(parts=st.lists(st.tuples(outcomes, outcomes, st.integers(0, 9)), max_size=4))
def test_processes_together_count_what_one_would(
    parts: list[tuple[list[float | None], list[float | None], int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("counts")
    whole = Comparison()
    for number, (production, candidate, others) in enumerate(parts):
        part = Comparison(compared=others, agreed=others // 2, dropped=others + 1)
        for outcome in production:
            part.production.add(outcome)
            whole.production.add(outcome)
        for outcome in candidate:
            part.candidate.add(outcome)
            whole.candidate.add(outcome)
        whole += Comparison(compared=others, agreed=others // 2, dropped=others + 1)
        publish(folder / "trial", str(number), Comparison())
        publish(folder / "trial", str(number), part)  # what a process counts replaces what it counted before
    together = gather(folder / "trial")
    assert (together.compared, together.agreed, together.dropped) == (whole.compared, whole.agreed, whole.dropped)
    for found, expected in ((together.production, whole.production), (together.candidate, whole.candidate)):
        assert (found.pictures, found.failures) == (expected.pictures, expected.failures)
        assert (found.seconds, found.squares) == pytest.approx((expected.seconds, expected.squares))


def test_nothing_is_counted_before_it_begins(tmp_path: Path) -> None:
    assert gather(tmp_path / "nowhere") == Comparison()
