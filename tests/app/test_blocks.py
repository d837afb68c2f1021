"""Large batches in blocks, and what is left over."""

import numpy as np
import pytest

from app.serving.blocks import BlockEngine, Blocks, faster
from app.serving.curve import Curve
from app.serving.engine import AnyKind
from app.serving.fake import FakeEngine
from app.serving.tryout import Result


@pytest.mark.parametrize(
    ("count", "blocks", "rest"),
    [
        (1, [], [1]),
        (11, [], [11]),
        (12, [12], []),
        (16, [16], []),
        (27, [16], [11]),
        (28, [16, 12], []),
        (64, [16] * 4, []),
    ],
)
def test_blocks_and_the_rest_are_answered_in_their_order(count: int, blocks: list[int], rest: list[int]) -> None:
    block, other = FakeEngine(), FakeEngine()
    engine = BlockEngine(block, other, size=16, least=12)
    rows = engine.predict(np.stack([FakeEngine.picture(identity) for identity in range(count)]))
    assert rows[:, 0].tolist() == [*range(count)]
    assert [len(batch) for batch in block.batches] == blocks
    assert [len(batch) for batch in other.batches] == rest


@pytest.mark.parametrize(("largest", "warmed"), [(16, (16, 11)), (4, (4, 4))])
def test_each_is_warmed_up_for_what_it_computes(largest: int, warmed: tuple[int, int]) -> None:
    found: list[int] = []

    class Noting(FakeEngine):
        def warm_up(self, max_batch: int) -> None:
            found.append(max_batch)

    BlockEngine(Noting(), Noting(), size=16, least=12).warm_up(largest)
    assert tuple(found) == warmed


def tried(kind: AnyKind, **seconds: float) -> Result:
    return Result(kind=kind, seconds={int(size.removeprefix("of_")): taken for size, taken in seconds.items()})


def test_blocks_are_used_where_they_save_enough() -> None:
    curve = Curve({1: 0.01, 16: 0.16, 32: 0.32})  # a busier minute than the one in which the two were timed
    plain = tried("openvino-bf16", of_1=0.005, of_16=0.08)
    quick, slow = (tried("openvino-bf16-winograd", of_16=taken) for taken in (0.04, 0.078))
    blocks = faster("openvino-bf16-winograd", quick, plain, curve)
    assert blocks == Blocks(kind="openvino-bf16-winograd", seconds=0.08, least=8)
    assert blocks.applied(curve).seconds == {1: 0.01, 16: 0.08}
    assert faster("openvino-bf16-winograd", slow, plain, curve) is None


def test_blocks_of_any_size_are_used_from_where_they_are_faster() -> None:
    curve = Curve({1: 0.01, 16: 0.16})
    plain = tried("openvino-f32", of_1=0.01, of_2=0.02, of_4=0.04, of_8=0.08, of_16=0.16)
    found = tried("native-f32", of_1=0.02, of_2=0.025, of_4=0.03, of_8=0.04, of_16=0.08)
    assert faster("native-f32", found, plain, curve) == Blocks(kind="native-f32", seconds=0.08, least=3)


def test_blocks_are_not_used_where_larger_batches_are_faster() -> None:
    curve = Curve({1: 0.01, 16: 0.16, 64: 0.3})
    found, plain = tried("openvino-bf16-winograd", of_16=0.06), tried("openvino-bf16", of_1=0.005, of_16=0.08)
    assert faster("openvino-bf16-winograd", found, plain, curve) is None
