"""Promotion: which version of a model is in production."""

import logging
from pathlib import Path

from training import artifact
from training.artifact import Aliases

log = logging.getLogger(__name__)


def promote(models: Path, data_dir: Path, name: str, version: int, actor: str) -> None:  # noqa: ARG001
    """Put a version into production.

    Args:
        models: folder of the models.
        data_dir: folder of what the service itself writes.
        name: a model.
        version: one of its versions.
        actor: who wants it.
    """
    before = artifact.read_aliases(models, name)
    artifact.write_aliases(models, name, Aliases(production=version, history=(*before.history, version)))
    log.info("%s puts version %d of %s into production", actor, version, name)
