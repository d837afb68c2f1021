"""Small real artifacts: untrained networks, written, hashed and read the way trained ones are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training import artifact, export, probe, resnet
from training.artifact import Aliases, DataRecord, Manifest
from training.calibration import Calibration
from training.normalisation import Normalisation

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 32
NORMALISATION = Normalisation((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def write(
    models: Path,
    name: str,
    seed: int,
    classes: Sequence[str] = CLASSES,
    promote: bool = True,
    architecture: str = "resnet20",
    width: int = 8,
    wrap: Callable[[nn.Module], nn.Module] = nn.Sequential,
    *,
    probed: bool = True,
) -> Path:
    """Write the next version of a model and give its folder; the seed decides what it answers."""
    torch.manual_seed(seed)
    network = resnet.build(architecture, len(classes), {"width": width}).eval()
    version = artifact.next_version(models, name)
    with artifact.new_version(models, name) as folder:
        save_file(network.state_dict(), folder / artifact.WEIGHTS)
        # A low temperature: untrained networks are unsure, and answers that differ much are easier to tell apart.
        served = export.Served(wrap(network), NORMALISATION, Calibration(0.1))
        export.save_script(served, SIZE, folder / artifact.SCRIPT)
        if probed:
            _write_probe(served, folder / probe.PROBE)
        artifact.write_manifest(folder, _manifest(name, version, seed, classes, folder, architecture, width))
    if promote:
        artifact.write_aliases(models, name, Aliases(production=version, history=(version,)))
    return artifact.folder(models, name, version)


class Fragile(nn.Module):
    """Fails on pictures without a dark pixel; those that a service warms up with are black."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        bright = (pictures.amin() > 0).long()
        logits: Tensor = self.network(pictures)
        return logits + torch.zeros(1)[bright]  # there is no element 1


def change_a_byte(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@torch.inference_mode()
def _write_probe(served: export.Served, path: Path) -> None:
    pictures = torch.randint(0, 256, (64, 3, SIZE // 4, SIZE // 4), dtype=torch.uint8).repeat_interleave(4, 2)
    pictures = pictures.repeat_interleave(4, 3).contiguous()
    probe.write(path, probe.Probe(pictures.numpy(), served(pictures).softmax(1).numpy()))


def _manifest(
    name: str, version: int, seed: int, classes: Sequence[str], folder: Path, architecture: str, width: int
) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        created="2026-01-01T00:00:00+00:00",
        command="",
        architecture=architecture,
        arguments={"width": width},
        classes=tuple(classes),
        input_size=SIZE,
        mean=NORMALISATION.mean,
        std=NORMALISATION.std,
        temperature=0.1,
        metrics={},
        data=DataRecord(sha256="", counts={}, made_splits=(), seed=seed),
        recipe={},
        seed=seed,
        libraries={"torch": torch.__version__},
        training_seconds=0,
        machine="",
        precision="float32",
        files=artifact.record_files(folder),
    )
