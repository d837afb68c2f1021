"""The kinds of engines that there are, and which of them a machine can run."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.serving import openvino, winograd
from app.serving.engine import AnyKind, BlockKind, Engine, Kind
from app.serving.openvino import OpenVinoEngine, Precision
from app.serving.turns import HALVES
from training import machine, probe
from training.artifact import SCRIPT, Manifest
from training.errors import ArtifactError

# Pictures in a block, as many bytes in either format: half as many, or twice, cost up to a tenth more each
# (docs/performance.md).
BLOCK: Mapping[BlockKind, int] = MappingProxyType(
    {"openvino-bf16-winograd": 16, "openvino-f32-winograd": 8, "openvino-f32-winograd-large": 8}
)


class Place(BaseModel):
    """Where an engine runs.

    Args:
        device: `cpu` or `cuda`.
        threads: that compute a batch.
        instances: batches that are computed at a time.
        cache: folder for converted networks.
    """

    model_config = ConfigDict(frozen=True)

    device: Literal["cpu", "cuda"]
    threads: int
    instances: int = 1
    cache: Path = Path()


def possible(device: Literal["cpu", "cuda"], cpuinfo: Path = machine.CPUINFO) -> tuple[Kind, ...]:
    """Kinds that give the answers of the artifact, as nearly as their number format can, and that can run here.

    The ones that are usually fastest come first: there may be no time to try the others. 8-bit integers are not among
    them: they are for those who name them.
    """
    if device == "cuda":
        return ("torchscript-f16", "torchscript-f32")
    kinds: tuple[Kind, ...] = ("openvino-f32", "torchscript-f32")
    if machine.fast_bfloat16(cpuinfo):
        kinds = ("openvino-bf16", "openvino-f32", "torchscript-bf16", "torchscript-f32")
    elif machine.has_bfloat16(cpuinfo):
        kinds = ("openvino-f32", "openvino-bf16", "torchscript-f32", "torchscript-bf16")
    return tuple(kind for kind in kinds if openvino.available() or not kind.startswith("openvino"))


def of_blocks(kind: Kind) -> tuple[BlockKind, ...]:
    """The kinds that compute the same network in blocks of one size, with fewer multiplications."""
    match kind:
        case "openvino-bf16":
            return ("openvino-bf16-winograd",)
        case "openvino-f32":
            return ("openvino-f32-winograd-large", "openvino-f32-winograd")
    return ()


def prepare(kind: AnyKind, folder: Path, manifest: Manifest, place: Place) -> None:
    """Convert an artifact's network for a kind, once.

    Raises:
        ArtifactError: it cannot be converted; the message says why.
    """
    if not kind.startswith("openvino"):
        return
    if not openvino.available():
        raise ArtifactError(
            f"{kind} needs OpenVINO. Install it with pip install 'refit[openvino]', or set APP_ENGINE=auto."
        )
    network = _converted("f32", place)
    if not network.exists():
        openvino.convert(folder / SCRIPT, manifest.input_size, network)
    match kind:
        case "openvino-bf16-winograd" | "openvino-f32-winograd" | "openvino-f32-winograd-large":
            if not (target := _of_blocks(kind, place)).exists():
                winograd.convert(network, BLOCK[kind], target, large=kind == "openvino-f32-winograd-large")
    if kind == "openvino-int8" and not (target := _integers(manifest, place)).exists():
        if probe.PROBE not in manifest.files:
            raise ArtifactError(
                f"{folder} brings no {probe.PROBE} whose pictures 8-bit integers can be calibrated with. Export the "
                "model anew, or set APP_ENGINE=auto."
            )
        openvino.quantise(network, probe.read(folder / probe.PROBE).pictures, target)


def discard_blocks(kind: BlockKind, place: Place) -> None:
    """Remove what was converted for blocks that are not used."""
    for suffix in (".xml", ".bin"):
        _of_blocks(kind, place).with_suffix(suffix).unlink(missing_ok=True)


def make(kind: AnyKind, folder: Path, manifest: Manifest, place: Place) -> Engine:
    """Make an engine that was prepared before; it is not loaded yet."""

    def of_openvino(path: Path, precision: Precision, batch: int | None = None) -> Engine:
        return OpenVinoEngine(path, manifest, precision, place.threads, place.instances, batch)

    match kind:
        case "openvino-bf16":
            return of_openvino(_converted("f32", place), "bf16")
        case "openvino-f32":
            return of_openvino(_converted("f32", place), "f32")
        case "openvino-int8":
            return of_openvino(_integers(manifest, place), "int8")
        case "openvino-bf16-winograd":
            return of_openvino(_of_blocks(kind, place), "bf16", BLOCK[kind])
        case "openvino-f32-winograd" | "openvino-f32-winograd-large":
            return of_openvino(_of_blocks(kind, place), "f32", BLOCK[kind])
    return _torchscript(kind, folder, manifest, place)


def halved(kind: Kind, place: Place) -> Place | None:
    """The place for two batches at a time, each with half of the threads, if they can be divided."""
    if not kind.startswith("openvino") or place.threads < HALVES:
        return None
    return place.model_copy(update={"instances": HALVES})


def _torchscript(
    kind: Literal["torchscript-bf16", "torchscript-f16", "torchscript-f32"],
    folder: Path,
    manifest: Manifest,
    place: Place,
) -> Engine:
    # Only here: torch takes a second and 300 MB, and OpenVINO does without it.
    import torch  # noqa: PLC0415

    from app.serving.torchscript import TorchScriptEngine  # noqa: PLC0415

    torch.set_num_threads(place.threads)
    device = torch.device(place.device)
    match kind:
        case "torchscript-bf16":
            return TorchScriptEngine(folder, manifest, device, "bf16")
        case "torchscript-f16":
            return TorchScriptEngine(folder, manifest, device, "f16")
        case "torchscript-f32":
            return TorchScriptEngine(folder, manifest, device, "f32")


def _integers(manifest: Manifest, place: Place) -> Path:
    """A network in 8-bit integers: what was converted, if it is in them already."""
    return _converted("int8" if manifest.quantisation is None else "f32", place)


def _of_blocks(kind: BlockKind, place: Place) -> Path:
    return _converted(kind.removeprefix("openvino-"), place)


def _converted(name: str, place: Place) -> Path:
    return place.cache / f"{name}.xml"
