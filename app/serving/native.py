"""The engine without a library: it computes the plan of a network with the module `kernels`, which is compiled."""

import queue
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from app.serving import plan
from app.serving.engine import Pixels, Probabilities, check_shape, softmax
from training.artifact import CERTAINTY_POWER, Manifest

try:
    from app.serving import kernels, layout
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True


class NativeEngine:
    """Computes as many batches at a time as it has instances.

    Args:
        path: of `convert`.
        manifest: of the version that it was converted from.
        threads: of one batch and of all together, divided among `instances`.
        instances: batches that can be computed at a time.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int, instances: int = 1) -> None:
        self._path = path
        self._manifest = manifest
        self._threads = threads // instances
        self._instances = instances
        self._computers: queue.SimpleQueue[kernels.Computer] = queue.SimpleQueue()

    def load(self) -> None:
        found = plan.read(self._path)
        network = layout.arranged(found, self._manifest.mean, self._manifest.std, kernels.WIDTHS[-1])
        for _ in range(self._instances):
            self._computers.put(kernels.Computer(network, self._threads))

    def warm_up(self, max_batch: int) -> None:
        check_shape(self, max_batch, self._manifest.input_size, len(self._manifest.classes))

    def predict(self, pictures: Pixels) -> Probabilities:
        try:
            computer = self._computers.get_nowait()
        except queue.Empty:
            raise RuntimeError("The engine was not loaded, or more batches than it has instances.") from None
        try:
            logits = computer.compute(np.ascontiguousarray(pictures))
        finally:
            self._computers.put(computer)
        return softmax(self._calibrated(logits))

    def _calibrated(self, logits: Probabilities) -> Probabilities:
        """As `training.calibration.Calibration`."""
        undecided = 1 / self._manifest.temperature
        if self._manifest.temperature_certain is None:
            return logits * undecided
        certainty = softmax(logits).max(1, keepdims=True) ** CERTAINTY_POWER
        certain = 1 / self._manifest.temperature_certain
        calibrated: Probabilities = logits * (undecided + (certain - undecided) * certainty)
        return calibrated


def convert(script: Path, size: int, target: Path) -> None:
    """Make the plan of a TorchScript file.

    Raises:
        ArtifactError: it has a layer that the plan has no step for.
        OSError: `target` cannot be written.
    """
    found = plan.trace(script, size)
    try:
        found.save(target)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}. Make room on its disk, then restart.") from error
