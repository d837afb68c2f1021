"""The command line of the service: `python -m app serve`, and `python -m app worker` for more fine-tune workers."""

import logging.config
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError

from app import server
from app.connection import Connection
from app.jobs import supervisor, workflow
from app.jobs.outage import Outage
from app.jobs.process import end_with_parent
from app.jobs.worker import Worker
from app.settings import Settings
from training.errors import InputError

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

_SECRETS = {"api_keys", "database_url"}  # settings whose values are not shown

_GRACE_SECONDS = 8  # below the ten that container engines give before they kill
# Longer than proxies keep a connection that is not in use, Caddy two minutes, most others one: a request that they send
# on one that is closed at that moment is lost.
_KEEP_ALIVE_SECONDS = 125
_DESCRIPTORS = 8192  # more connections than a small machine has memory for

_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "filters": {"outage": {"()": Outage}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "line"},
        "jobs": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["outage"]},
    },
    # DBOS's own handler would be a second one, in another format.
    "loggers": {
        "dbos": {"handlers": ["jobs"], "level": "WARNING", "propagate": False},
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
}


@cli.callback()
def main() -> None:
    """Serve image classifiers over HTTP. Every setting is an environment variable APP_...; see the README."""


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: APP_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: APP_PORT.")] = None,
    workers: Annotated[int | None, typer.Option(help="Number of processes. Default: APP_WORKERS.")] = None,
) -> None:
    """Serve the models in APP_MODELS_DIR until SIGTERM or Ctrl-C, and run fine-tune jobs beside it."""
    options = {"APP_HOST": host, "APP_PORT": port, "APP_WORKERS": workers}
    # Through the environment, the options reach the worker processes, which read their settings themselves.
    os.environ.update({name: str(value) for name, value in options.items() if value is not None})
    settings = _read_settings()
    # The server ends its work on SIGTERM and then raises the signal anew: being stopped is not a failure.
    signal.signal(signal.SIGTERM, _stopped)
    logging.config.dictConfig(_LOGGING)
    _allow_descriptors()
    try:
        if settings.device == "cuda":  # the only one that can be missing
            # Said once, here: processes that fail while they make the application are started anew for ever.
            settings.choose_device()
        with _shared_metrics(settings.workers), supervisor.workers(settings):
            config = uvicorn.Config(
                "app.main:create_app",
                factory=True,
                host=settings.host,
                port=settings.port,
                workers=settings.workers,
                log_config=_LOGGING,
                access_log=settings.access_log,
                http=Connection,
                forwarded_allow_ips=settings.trusted_proxies,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                server_header=False,
                # No browser takes an answer, a job's log say, for a page with scripts.
                headers=[("X-Content-Type-Options", "nosniff")],
            )
            server.run(config)
    except InputError as error:
        _refuse(str(error))
    except SystemExit as end:
        raise typer.Exit(1 if end.code else 0) from end


@cli.command()
def worker(
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True, help="End when the service ends.")] = False,
) -> None:
    """Run fine-tune jobs, one at a time, until SIGTERM or Ctrl-C.

    Several workers share the jobs: on one machine as they are, on several with the same folders mounted and PostgreSQL
    as APP_DATABASE_URL.
    """
    settings = _read_settings()
    logging.config.dictConfig(_LOGGING)
    if supervised:
        end_with_parent()
        workflow.SUPERVISED.set()
    Worker(settings).run(stay=not supervised)


def _allow_descriptors() -> None:
    """Raise the soft limit on open files, which is 1,024 in most places, as far as the hard one lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS:
        wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """Give several processes a folder in which they share their figures; they read its name from the environment."""
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="refit-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


def _read_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        _refuse("\n".join(_explain(entry) for entry in error.errors()))
        raise


def _explain(entry: Any) -> str:
    if not entry["loc"]:
        return str(entry["msg"])
    name = str(entry["loc"][0])
    shown = "" if name in _SECRETS else f" is {entry['input']!r}"
    return f"APP_{name.upper()}{shown}: {entry['msg']}"


def _refuse(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _stopped(_: int, __: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    cli()
