"""The engine that runs an artifact's network with OpenVINO, converted from its TorchScript once."""

import importlib
import importlib.util
import os
import queue
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock
from types import ModuleType
from typing import Any, Literal

import numpy as np

from app.serving.engine import Pixels, Probabilities, check_shape, softmax
from training import machine
from training.artifact import Manifest
from training.errors import ArtifactError

Precision = Literal["f32", "bf16", "int8"]

_PREPARING = Lock()

# What the layers that are not quantised compute in, for each precision.
_HINTS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}


def available() -> bool:
    """Whether OpenVINO is installed (the extra `openvino`)."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoEngine:
    """Runs a converted network on the CPU.

    Args:
        path: of `convert` or `quantise`.
        manifest: of the version that it was converted from.
        precision: that it computes in; `int8` takes a file of `quantise`.
        threads: of one batch and of all together, divided among `instances`.
        instances: batches that can be computed at a time.
        batch: pictures in every batch, of a network that takes no other number: fewer are filled up with black ones.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        precision: Precision,
        threads: int,
        instances: int = 1,
        batch: int | None = None,
    ) -> None:
        self._path = path
        self._manifest = manifest
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(instances),
            "INFERENCE_NUM_THREADS": str(threads),
            # Pinned threads of several processes, or of a container with a quota, would all sit on the same cores.
            "ENABLE_CPU_PINNING": "NO",
        }
        self._instances = instances
        self._batch = batch
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def load(self) -> None:
        openvino = library()
        try:
            compiled = openvino.Core().compile_model(str(self._path), "CPU", self._options)
        except RuntimeError as error:
            raise ArtifactError(f"{self._path} cannot be compiled: {error}") from error
        for _ in range(self._instances):
            self._requests.put(compiled.create_infer_request())

    def warm_up(self, max_batch: int) -> None:
        # Code is generated for each batch size when it is first seen, which takes longer than the batch itself.
        # From the largest down, so that no buffer is ever replaced by a larger one.
        # Each instance generates its own, and a thread keeps to one of them.
        together = Barrier(self._instances)

        def compute(batch: int) -> None:
            together.wait()
            check_shape(self, batch, self._manifest.input_size, len(self._manifest.classes))

        with ThreadPoolExecutor(self._instances) as threads:
            for batch in [1] if self._batch else range(max_batch, 0, -1):
                list(threads.map(compute, [batch] * self._instances))
        # By now the weights were copied into the form that is computed with.
        machine.release_mapped(self._path.with_suffix(".bin"))

    def predict(self, pictures: Pixels) -> Probabilities:
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            raise RuntimeError("The engine was not loaded, or more batches than it has instances.") from None
        try:
            # Without copies: the answer's buffer belongs to the request, and is read before the request is used again.
            logits = request.infer({0: self._filled(pictures)}, share_inputs=True, share_outputs=True)[0]
            return softmax(logits[: len(pictures)])
        finally:
            self._requests.put(request)

    def _filled(self, pictures: Pixels) -> Pixels:
        if self._batch is None or len(pictures) == self._batch:
            return pictures
        batch = np.zeros((self._batch, *pictures.shape[1:]), np.uint8)
        batch[: len(pictures)] = pictures
        return batch


def convert(script: Path, size: int, target: Path) -> None:
    """Convert a TorchScript file; the result takes any number of pictures.

    Raises:
        ArtifactError: OpenVINO cannot convert it.
        OSError: `target` cannot be written.
    """
    openvino = library()
    import torch  # noqa: PLC0415 (not wanted in the service, where what was converted before is only loaded)

    from training import export  # noqa: PLC0415

    network = export.load_script(script, torch.device("cpu"))
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    try:
        model = openvino.convert_model(network, example_input=example, input=[([-1, 3, size, size], openvino.Type.u8)])
    except Exception as error:  # the frontend raises its own types, and those of torch
        raise ArtifactError(f"{script} cannot be converted for OpenVINO: {error}") from error
    save(model, target)


def quantise(source: Path, pictures: Pixels, target: Path) -> None:
    """Quantise weights and activations of a converted network to 8-bit integers, with NNCF.

    Args:
        source: of `convert`.
        pictures: uint8 [N, 3, size, size] of the training split; their activations give the ranges.
        target: where the result goes.
    """
    os.environ.setdefault("NNCF_CI", "1")  # NNCF sends no usage data then
    openvino = library()
    import nncf  # noqa: PLC0415 (seconds to import)

    calibration = nncf.Dataset(list(pictures), lambda picture: picture[None])
    # Weights in half of the range of int8 everywhere: with all of it, processors without VNNI cut sums off.
    halved = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    network = openvino.Core().read_model(source)
    model = nncf.quantize(network, calibration, subset_size=len(pictures), advanced_parameters=halved)
    save(model, target)


def library() -> ModuleType:
    """OpenVINO, imported when it is needed."""
    with _PREPARING:
        # It reports its import and every conversion to its makers through this package, and does without it if it
        # cannot be imported.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        openvino = importlib.import_module("openvino")
        # If two threads look at an array of its for the first time at once, both wait for ever: one prepares its use of
        # NumPy and waits for Python's lock, the other has that lock and waits for what is prepared.
        np.asarray(openvino.Tensor(np.zeros(1, np.uint8)).data)
    return openvino


def operations() -> ModuleType:
    """The operations that its networks consist of."""
    library()
    return importlib.import_module("openvino.opset14")


def save(model: Any, target: Path) -> None:
    """Write a network and its weights so that the one is never there without the other.

    Raises:
        OSError: they cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder, target.name)
        try:
            library().save_model(model, partial, compress_to_fp16=False)
        except RuntimeError as error:  # "iostream error", whatever the reason
            raise OSError(f"{target} cannot be written: {error}. Make room on its disk, then restart.") from error
        for suffix in (".bin", ".xml"):
            partial.with_suffix(suffix).replace(target.with_suffix(suffix))
