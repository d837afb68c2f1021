"""What tests of every package share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and no limit on time: a busy machine fails no test.
settings.register_profile("refit", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refit")

_ARCHIVE = Path(__file__).resolve().parents[1] / ".." / "shared" / "cifar10" / "cifar10-jpeg.tar.xz"


@pytest.fixture(scope="session", autouse=True)
def refit_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache folder for the whole session, so that no test reads or fills the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cifar10_archive() -> Path:
    """The 60,000 pictures of CIFAR-10 as an archive; the test is skipped where it does not lie beside the checkout."""
    if not _ARCHIVE.exists():
        if os.environ.get("REFIT_REQUIRE_CIFAR10") == "1":
            pytest.fail("REFIT_REQUIRE_CIFAR10 is 1, but ../shared/cifar10/cifar10-jpeg.tar.xz is missing")
        pytest.skip("needs ../shared/cifar10/cifar10-jpeg.tar.xz beside the checkout")
    return _ARCHIVE.resolve()
