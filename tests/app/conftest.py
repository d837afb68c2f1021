"""One folder of models, and servers of it, for all tests of the service."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests import processors
from tests.app import artifacts
from tests.app.process import Server, serve


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, some of them broken; tests only read them."""
    folder = tmp_path_factory.mktemp("models")
    artifacts.write(folder, "cifar10", seed=1)
    artifacts.write(folder, "cifar10", seed=2, promote=False)
    artifacts.write(folder, "pets", seed=3, classes=("bird", "cat", "dog", "fish"))
    artifacts.write(folder, "unpromoted", seed=4, promote=False)
    artifacts.change_a_byte(artifacts.write(folder, "changed", seed=5) / "model.ts")
    (artifacts.write(folder, "unreadable", seed=6) / "manifest.json").write_text('{"schema_version": 1')
    (folder / ".runs" / "cifar10").mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Server]:
    """A running server with small limits on what is sent, and a large one on what is in work."""
    with ExitStack() as until_the_end:
        with processors.every():
            running = until_the_end.enter_context(serve(models, max_upload_mb=4, max_inflight=8192))
        yield running


@pytest.fixture(scope="session")
def guarded(models: Path) -> Iterator[Server]:
    """A running server that asks for one of two keys, `first-key` and `second-key`."""
    with serve(models, api_keys="first-key, second-key") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the running server."""
    with httpx.Client(base_url=server.url, timeout=60) as connected:
        yield connected
