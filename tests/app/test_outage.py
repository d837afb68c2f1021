"""A database that is away: workers say so, in few lines, and go on when it is back."""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from app.jobs.outage import Outage
from tests.app import postgres
from tests.app.clock import Clock
from tests.app.test_intake import wait_until

NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/refit"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written(clock: Clock) -> io.StringIO:
    """What the log holds of the logger `outage`."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Outage(clock))
    logger = logging.getLogger("outage")
    logger.handlers, logger.propagate = [handler], False
    return stream


def fail(act: Callable[[], object]) -> None:
    """Log why something fails, with the traceback in the text, as DBOS does."""
    try:
        act()
    except Exception:
        logging.getLogger("outage").warning("Exception polling schedules:", exc_info=True)


def refused() -> None:
    psycopg.connect("postgresql://nobody@127.0.0.1:1/refit")


def test_lost_connections_are_one_line_a_minute_with_a_count(clock: Clock, written: io.StringIO) -> None:
    for _ in range(20):
        fail(refused)
        fail(lambda: sqlalchemy.create_engine(NOWHERE).connect())
    first = written.getvalue()
    assert first.count("\n") == 1
    assert "cannot be reached" in first
    assert "port 1 failed" in first
    clock.now = 60
    fail(refused)
    fail(refused)
    second = written.getvalue().removeprefix(first)
    assert second.count("\n") == 1
    assert "(messages left out before: 39)" in second


def test_all_other_errors_are_logged_as_they_are(written: io.StringIO) -> None:
    fail(refused)
    for _ in range(2):
        fail(lambda: sqlalchemy.create_engine("sqlite://").connect().execute(sqlalchemy.text("SELECT * FROM jobs")))
    assert written.getvalue().count("Traceback") == 4  # SQLAlchemy's error and the one below it, twice
    logging.getLogger("outage").warning("said outside of any handler")
    assert written.getvalue().endswith("said outside of any handler\n")


def test_a_worker_whose_database_is_away_writes_few_lines(tmp_path: Path) -> None:
    with postgres.cluster() as url, psycopg.connect(url, dbname="postgres", autocommit=True) as admin:
        environment = os.environ | {
            "APP_MODELS_DIR": str(tmp_path / "models"),
            "APP_DATA_DIR": str(tmp_path / "data"),
            "APP_DATABASE_URL": url,
        }
        command = [sys.executable, "-m", "app", "worker"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as worker:
            assert worker.stderr
            assert "waits for jobs" in worker.stderr.readline()
            let_in(admin, False)
            log = Path(str(one(admin, "SHOW data_directory"))).parent / "log.txt"
            wait_until(lambda: log.read_text().count("not currently accepting connections") > 20)
            let_in(admin, True)
            wait_until(lambda: bool(one(admin, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'refit'")))
            worker.terminate()
            (line,) = worker.stderr.readlines()
        assert worker.returncode == 0
    assert "The database of the jobs cannot be reached and is tried again." in line


def let_in(admin: psycopg.Connection, anybody: bool) -> None:
    """Open the jobs' database, or close it and end all connections."""
    admin.execute(f"ALTER DATABASE refit ALLOW_CONNECTIONS {anybody}".encode())
    if not anybody:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'refit'")


def one(admin: psycopg.Connection, query: str) -> object:
    """The one value that a query gives."""
    row = admin.execute(query.encode()).fetchone()
    assert row
    return row[0]
