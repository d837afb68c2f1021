"""Which kinds of engines a machine can run, the usually fastest first."""

from pathlib import Path

import pytest

from app.serving import candidates
from app.serving.candidates import Place
from training import artifact


@pytest.mark.parametrize(
    ("cpuinfo", "kinds"),
    [
        (
            "vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16 amx_bf16\n",
            ("openvino-bf16", "openvino-f32", "torchscript-bf16", "torchscript-f32"),
        ),
        (
            "vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16\n",
            ("openvino-f32", "openvino-bf16", "torchscript-f32", "torchscript-bf16"),
        ),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2\n", ("openvino-f32", "torchscript-f32")),
    ],
)
def test_the_faster_number_format_is_tried_first(tmp_path: Path, cpuinfo: str, kinds: tuple[str, ...]) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(cpuinfo)
    assert candidates.possible("cpu", told) == kinds


def test_halves_take_two_threads_and_an_engine_that_can_be_divided(models: Path) -> None:
    folder = models / "cifar10/1"
    manifest = artifact.read_manifest(folder)
    assert not candidates.make_halves("openvino-f32", folder, manifest, Place(device="cpu", threads=1))
    assert not candidates.make_halves("torchscript-f32", folder, manifest, Place(device="cpu", threads=2))
    assert candidates.make_halves("openvino-f32", folder, manifest, Place(device="cpu", threads=2))


def test_a_gpu_runs_what_torch_loads() -> None:
    assert candidates.possible("cuda") == ("torchscript-f16", "torchscript-f32")
