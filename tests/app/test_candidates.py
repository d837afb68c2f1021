"""Which kinds of engines a machine can run, the usually fastest first."""

from pathlib import Path

import pytest

from app.serving import candidates
from app.serving.candidates import Place
from app.serving.engine import Kind
from tests import needs


@pytest.mark.parametrize(
    ("cpuinfo", "kinds"),
    [
        (
            "vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16 amx_bf16\n",
            ("openvino-bf16", "native-f32", "openvino-f32", "torchscript-bf16", "torchscript-f32"),
        ),
        (
            "vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16\n",
            ("openvino-f32", "native-f32", "openvino-bf16", "torchscript-f32", "torchscript-bf16"),
        ),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2\n", ("openvino-f32", "native-f32", "torchscript-f32")),
    ],
)
def test_the_faster_number_format_is_tried_first(tmp_path: Path, cpuinfo: str, kinds: tuple[str, ...]) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(cpuinfo)
    needs.compiled()
    assert candidates.possible("cpu", told) == kinds


def test_halves_take_two_threads_and_an_engine_that_can_be_divided() -> None:
    assert candidates.halved("openvino-f32", Place(device="cpu", threads=1)) is None
    assert candidates.halved("torchscript-f32", Place(device="cpu", threads=2)) is None
    assert candidates.halved("openvino-f32", Place(device="cpu", threads=2)) == Place(
        device="cpu", threads=2, instances=2
    )
    assert candidates.halved("native-f32", Place(device="cpu", threads=2))


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("openvino-bf16", {"openvino-bf16-winograd", "native-f32"}),
        ("openvino-f32", {"native-f32"}),
        ("openvino-int8", set()),
        ("native-f32", set()),
        ("torchscript-f32", {"native-f32"}),
    ],
)
def test_blocks_are_computed_in_numbers_as_long_or_longer(kind: Kind, blocks: set[str]) -> None:
    needs.compiled()
    assert set(candidates.of_blocks(kind)) == blocks


def test_a_gpu_runs_what_torch_loads() -> None:
    assert candidates.possible("cuda") == ("torchscript-f16", "torchscript-f32")
