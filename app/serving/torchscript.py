"""The engine that runs an artifact's TorchScript with torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from app.serving.engine import Pixels, Probabilities, check_shape
from training import artifact, export
from training.artifact import Manifest

Precision = Literal["f32", "bf16", "f16"]

_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


class TorchScriptEngine:
    """Runs the TorchScript file of an artifact, frozen and with channels last.

    Args:
        folder: of the version, verified before.
        manifest: of the version.
        device: where it runs.
        precision: `f32` runs the file as it is; with the others the network inside it computes in that format, and
            only normalisation, calibration and softmax stay in float32.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device, precision: Precision = "f32") -> None:
        self._path = folder / artifact.SCRIPT
        self._manifest = manifest
        self._device = device
        self._precision = precision
        self._script: Callable[[Tensor], Tensor] | None = None

    def load(self) -> None:
        script = export.load_script(self._path, self._device)
        if self._precision == "f32":
            self._script = export.frozen(script)
        else:
            self._script = export.reduced(script, _TYPES[self._precision])

    def warm_up(self, max_batch: int) -> None:
        # The first two runs of a script are profiled and compiled; the third is as quick as any later one.
        for batch in (1, 1, max_batch):
            check_shape(self, batch, self._manifest.input_size, len(self._manifest.classes))

    @torch.inference_mode()
    def predict(self, pictures: Pixels) -> Probabilities:
        if self._script is None:
            raise RuntimeError("The engine was not loaded. Call load() first.")
        batch = torch.from_numpy(pictures).to(self._device, memory_format=torch.channels_last)
        probabilities: Probabilities = self._script(batch).softmax(1).cpu().numpy()
        return probabilities
