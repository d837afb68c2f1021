"""The model that a fine-tune begins with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError
from torch import nn

from training import artifact, packaging
from training.artifact import Manifest
from training.errors import InputError
from training.layers import head_of
from training.normalisation import Normalisation
from training.pyramid import Pyramid
from training.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A verified version of a model; as text, its `name@version`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def read(cls, models: Path, model: str) -> Self:
        """Find `name`, meaning its version in production, or `name@version`.

        Of a version in 8-bit integers, which cannot be trained, it is the one in floating point that it was made from.

        Raises:
            InputError: there is no such model or version.
            ArtifactError: a file of it was changed after it was written.
        """
        folder = artifact.folder(models, *artifact.resolve(models, model))
        manifest = artifact.verify(folder)
        if manifest.quantisation is not None and manifest.parent is not None:
            log.info("%s is in 8-bit integers: beginning with %s, which it was made from", model, manifest.parent)
            return cls.read(models, manifest.parent)
        return cls(folder, manifest)

    def __str__(self) -> str:
        return f"{self.manifest.name}@{self.manifest.version}"

    @property
    def normalise(self) -> Normalisation:
        return Normalisation(self.manifest.mean, self.manifest.std)

    def recipe(self) -> Recipe:
        """The recipe that it was trained by.

        Raises:
            InputError: it is of another release.
        """
        try:
            return Recipe.model_validate(self.manifest.recipe)
        except ValidationError as error:
            raise InputError(f"{self} has a recipe of another release. Train it anew. ({error})") from error

    def network(self) -> nn.Module:
        """The network as it was written, on the CPU in evaluation mode."""
        return packaging.restore(self.folder, self.manifest)

    def adapted(self, classes: Sequence[str], levels: int) -> nn.Module:
        """The network with a head for other classes and so many scales.

        A class or scale that the base knows keeps its weights, every other one starts at zero.
        """
        network = self.network()
        old = head_of(network)
        trunk = network.trunk if isinstance(network, Pyramid) else network
        width = old.in_features // int(self.manifest.arguments.get("levels", 1))
        head = nn.Linear(levels * width, len(classes), bias=old.bias is not None)
        shared = min(head.in_features, old.in_features)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
            for row, name in enumerate(classes):
                if name in self.manifest.classes:
                    known = self.manifest.classes.index(name)
                    head.weight[row, :shared] = old.weight[known, :shared]
                    if old.bias is not None:
                        head.bias[row] = old.bias[known]
        if levels > 1:
            return Pyramid(trunk, levels, head).eval()
        trunk.head = head
        return trunk.eval()
