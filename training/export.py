"""The exporter: a trained network as one file that runs alone. Every use of `torch.jit` is here."""

import io
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from training.calibration import Calibration
from training.errors import ArtifactError
from training.normalisation import Normalisation

Script = torch.jit.ScriptModule  # an exported file in memory; `preprocess`, `network` and `calibration` are its parts


class Preprocess(nn.Module):
    """Pictures uint8 [N, 3, H, W] RGB to a network's input, float32."""

    def __init__(self, normalise: Normalisation) -> None:
        super().__init__()
        # Scaling to 0..1 and normalising are one multiplication and one addition.
        std = torch.tensor(normalise.std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(normalise.mean).view(1, 3, 1, 1) / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return images.float() * self.scale + self.shift


class Served(nn.Module):
    """A network with preprocessing and calibration inside: uint8 [N, 3, H, W] RGB to float32 logits [N, classes].

    The parts keep their names in the exported file, so that each can be run alone.
    """

    def __init__(self, network: nn.Module, normalise: Normalisation, calibration: Calibration) -> None:
        super().__init__()
        self.preprocess = Preprocess(normalise)
        self.network = network
        self.calibration = calibration

    def forward(self, images: Tensor) -> Tensor:
        return self.calibration(self.network(self.preprocess(images)))  # type: ignore[no-any-return]


def save_script(served: Served, size: int, path: Path) -> None:
    """Write a network as TorchScript, traced on the CPU with pictures of `size` pixels."""
    served = served.cpu().eval()
    with torch.inference_mode(), warnings.catch_warnings():
        # TorchScript is deprecated, and served all the same because users ask for it.
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        example = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        script = torch.jit.trace(served, example, check_trace=False)
        # Through memory, so that a full disk is an OSError like everywhere else, not one of torch's own.
        whole = io.BytesIO()
        torch.jit.save(script, whole)
    path.write_bytes(_deflated(whole))


def _deflated(stored: io.BytesIO) -> bytes:
    """A zip file with its members compressed, as every reader of TorchScript takes it too.

    Weights that were rounded to float16 are float32 in the script, with half of their bits zero: a third is saved.
    """
    small = io.BytesIO()
    with zipfile.ZipFile(stored) as before, zipfile.ZipFile(small, "w") as after:
        for member in before.infolist():
            after.writestr(member, before.read(member), zipfile.ZIP_DEFLATED, compresslevel=1)
    return small.getvalue()


def load_script(path: Path, device: torch.device) -> Script:
    """Load what `save_script` wrote. Verify the artifact first: TorchScript is a program.

    Raises:
        ArtifactError: the file is not TorchScript that this version of torch can read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} cannot be loaded by torch {torch.__version__} ({error}). Export it anew."
        ) from error


def unoptimised() -> AbstractContextManager[None]:
    """Run scripts as they are: for ten thousand pictures it takes longer to compile kernels than they save."""
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


def frozen(script: Script) -> Script:
    """The same script with its weights made constants, so that torch folds what can be computed beforehand."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        return torch.jit.freeze(script)  # type: ignore[no-any-return]


def reduced(script: Script, precision: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A script whose network computes in a shorter number format, channels last; its other parts do not.

    Args:
        script: of `load_script`, written by `save_script`; it is used up.
        precision: bfloat16 or float16.

    Raises:
        ArtifactError: the file's parts have no names, as in those that were not written by `save_script`.
    """
    if not hasattr(script, "preprocess"):
        raise ArtifactError("The file has no named parts, so its network cannot be run alone. Export it anew.")
    network = frozen(script.network.to(precision, memory_format=torch.channels_last))

    def run(images: Tensor) -> Tensor:
        logits: Tensor = script.calibration(network(script.preprocess(images).to(precision)).float())
        return logits

    return run
