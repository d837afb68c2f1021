"""What tests of every package share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import needs, processors

# The same examples in every run, and no limit on time: a busy machine fails no test.
settings.register_profile("refit", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refit")

# A shell lets what it starts in the background ignore SIGINT, and every process that the tests start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Not in `pytest_configure`: with tests named by their file it comes after torch, which counts processors on import.
processors.keep_to_one()


def pytest_configure(config: pytest.Config) -> None:
    """Runs in every process of the suite; the one that only hands tests to the others starts them on all processors."""
    if config.getoption("dist", "no") != "no":
        processors.use_all()


@pytest.fixture
def every_processor() -> Iterator[None]:
    """Let the test run on all processors."""
    with processors.every():
        yield


@pytest.fixture(scope="session", autouse=True)
def refit_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache folder for the whole session, so that no test reads or fills the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cifar10_archive() -> Path:
    """The 60,000 pictures of CIFAR-10 as an archive."""
    return needs.cifar10()
