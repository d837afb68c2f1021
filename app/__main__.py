"""The command line of the service: `python -m app serve`."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError

from app.settings import Settings
from training.errors import InputError

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

_GRACE_SECONDS = 8  # below the ten that container engines give before they kill

_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
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
    """Serve the models in APP_MODELS_DIR until SIGTERM or Ctrl-C."""
    options = {"APP_HOST": host, "APP_PORT": port, "APP_WORKERS": workers}
    # Through the environment, the options reach the worker processes, which read their settings themselves.
    os.environ.update({name: str(value) for name, value in options.items() if value is not None})
    settings = _read_settings()
    # The server ends its work on SIGTERM and then raises the signal anew: being stopped is not a failure.
    signal.signal(signal.SIGTERM, _stopped)
    try:
        uvicorn.run(
            "app.main:create_app",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            log_config=_LOGGING,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            server_header=False,
        )
    except InputError as error:
        _refuse(str(error))
    except SystemExit as end:
        raise typer.Exit(1 if end.code else 0) from end


def _read_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        _refuse("\n".join(_explain(entry) for entry in error.errors()))
        raise


def _explain(entry: Any) -> str:
    if not entry["loc"]:
        return str(entry["msg"])
    shown = "" if "key" in str(entry["loc"][0]) else f" is {entry['input']!r}"
    return f"APP_{str(entry['loc'][0]).upper()}{shown}: {entry['msg']}"


def _refuse(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _stopped(_: int, __: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    cli()
