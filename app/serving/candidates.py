"""The kinds of engines that there are, and which of them a machine can run."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.serving import native, openvino, winograd
from app.serving.engine import AnyKind, BlockKind, Engine, Kind
from app.serving.native import NativeEngine
from app.serving.openvino import OpenVinoEngine, Precision
from app.serving.turns import HALVES
from training import machine, probe
from training.artifact import SCRIPT, Manifest
from training.errors import ArtifactError

# Pictures in a block. In bfloat16, half as many, or twice, cost up to a tenth more each (docs/performance.md); the
# native engine takes any number, and reads its weights once for so many.
BLOCK: Mapping[BlockKind, int] = MappingProxyType({"native-f32": 16, "openvino-bf16-winograd": 16})
# Kinds whose incomplete blocks cost as much as whole ones.
FIXED: frozenset[BlockKind] = frozenset({"openvino-bf16-winograd"})
_BLOCKS = "bf16-winograd"  # name of the network that computes these


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
    kinds: tuple[Kind, ...] = ("openvino-f32", "native-f32", "torchscript-f32")
    if machine.fast_bfloat16(cpuinfo):
        kinds = ("openvino-bf16", "native-f32", "openvino-f32", "torchscript-bf16", "torchscript-f32")
    elif machine.has_bfloat16(cpuinfo):
        kinds = ("openvino-f32", "native-f32", "openvino-bf16", "torchscript-f32", "torchscript-bf16")
    there = {"torchscript": True, "openvino": openvino.available(), "native": native.AVAILABLE}
    return tuple(kind for kind in kinds if there[kind.partition("-")[0]])


def of_blocks(kind: Kind) -> tuple[BlockKind, ...]:
    """The kinds that compute the same network in blocks with fewer multiplications, in numbers as long or longer."""
    if kind in {"native-f32", "openvino-int8"}:
        return ()
    own: tuple[BlockKind, ...] = ("openvino-bf16-winograd",) if kind == "openvino-bf16" else ()
    return (*own, "native-f32") if native.AVAILABLE else own


def prepare(kind: AnyKind, folder: Path, manifest: Manifest, place: Place) -> None:
    """Convert an artifact's network for a kind, once.

    Raises:
        ArtifactError: it cannot be converted; the message says why.
    """
    if kind == "native-f32":
        _prepare_plan(folder, manifest, place)
    if not kind.startswith("openvino"):
        return
    if not openvino.available():
        raise ArtifactError(
            f"{kind} needs OpenVINO. Install it with pip install 'refit[openvino]', or set APP_ENGINE=auto."
        )
    network = _converted("f32", place)
    if not network.exists():
        openvino.convert(folder / SCRIPT, manifest.input_size, network)
    if kind == "openvino-bf16-winograd" and not (target := _converted(_BLOCKS, place)).exists():
        winograd.convert(network, BLOCK[kind], target)
    if kind == "openvino-int8" and not (target := _integers(manifest, place)).exists():
        if probe.PROBE not in manifest.files:
            raise ArtifactError(
                f"{folder} brings no {probe.PROBE} whose pictures 8-bit integers can be calibrated with. Export the "
                "model anew, or set APP_ENGINE=auto."
            )
        openvino.quantise(network, probe.read(folder / probe.PROBE).pictures, target)


def _prepare_plan(folder: Path, manifest: Manifest, place: Place) -> None:
    if not native.AVAILABLE:
        raise ArtifactError(
            "native-f32 needs the modules that are compiled when Refit is installed. Install a C compiler and then "
            "Refit again, or set APP_ENGINE=auto."
        )
    if not (target := _plan(place)).exists():
        native.convert(folder / SCRIPT, manifest.input_size, target)


def discard_blocks(kind: BlockKind, place: Place) -> None:
    """Remove what was converted for blocks that are not used."""
    network = _converted(_BLOCKS, place)
    for path in (_plan(place),) if kind == "native-f32" else (network, network.with_suffix(".bin")):
        path.unlink(missing_ok=True)


def make(kind: AnyKind, folder: Path, manifest: Manifest, place: Place) -> Engine:
    """Make an engine that was prepared before; it is not loaded yet."""

    def of_openvino(path: Path, precision: Precision, batch: int | None = None) -> Engine:
        return OpenVinoEngine(path, manifest, precision, place.threads, place.instances, batch)

    match kind:
        case "native-f32":
            return NativeEngine(_plan(place), manifest, place.threads, place.instances)
        case "openvino-bf16":
            return of_openvino(_converted("f32", place), "bf16")
        case "openvino-f32":
            return of_openvino(_converted("f32", place), "f32")
        case "openvino-int8":
            return of_openvino(_integers(manifest, place), "int8")
        case "openvino-bf16-winograd":
            return of_openvino(_converted(_BLOCKS, place), "bf16", BLOCK[kind])
    return _torchscript(kind, folder, manifest, place)


def halved(kind: Kind, place: Place) -> Place | None:
    """The place for two batches at a time, each with half of the threads, if they can be divided."""
    if kind.startswith("torchscript") or place.threads < HALVES:
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


def _plan(place: Place) -> Path:
    return place.cache / "plan.safetensors"


def _converted(name: str, place: Place) -> Path:
    return place.cache / f"{name}.xml"
