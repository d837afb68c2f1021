"""Large batches in blocks, and what is left over."""

import numpy as np
import pytest

from app.serving.blocks import BLOCK, BlockEngine
from app.serving.fake import FakeEngine


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
    engine = BlockEngine(block, other, least=12)
    rows = engine.predict(np.stack([FakeEngine.picture(identity) for identity in range(count)]))
    assert rows[:, 0].tolist() == [*range(count)]
    assert [len(batch) for batch in block.batches] == blocks
    assert [len(batch) for batch in other.batches] == rest


@pytest.mark.parametrize(("largest", "warmed"), [(BLOCK, (BLOCK, 11)), (4, (4, 4))])
def test_each_is_warmed_up_for_what_it_computes(largest: int, warmed: tuple[int, int]) -> None:
    found: list[int] = []

    class Noting(FakeEngine):
        def warm_up(self, max_batch: int) -> None:
            found.append(max_batch)

    BlockEngine(Noting(), Noting(), least=12).warm_up(largest)
    assert tuple(found) == warmed
