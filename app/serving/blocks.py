"""Blocks: large batches computed by another engine than small ones, all at once or in parts of a fixed size."""

import math

import numpy as np
from pydantic import BaseModel, ConfigDict

from app.serving.candidates import BLOCK, FIXED
from app.serving.curve import Curve
from app.serving.engine import BlockKind, Engine, Pixels, Probabilities
from app.serving.tryout import Result

# Blocks are used if they take at most this share of the time: they cost the memory of another compiled network.
_WORTHWHILE = 0.95


class Blocks(BaseModel):
    """A faster way to compute large batches, in blocks.

    `seconds` is what a block takes with all threads: what an ordinary batch as large takes, made less in the proportion
    of the two with the threads that compute a block. `least` is from how many pictures on an incomplete one is faster.
    """

    model_config = ConfigDict(frozen=True)

    kind: BlockKind
    seconds: float
    least: int

    @property
    def size(self) -> int:
        """Pictures in a block."""
        return BLOCK[self.kind]

    def applied(self, curve: Curve) -> Curve:
        """The cost curve of an engine when it has them for large batches."""
        small = {size: taken for size, taken in curve.seconds.items() if size < self.size}
        return Curve({**small, self.size: self.seconds})


def faster(kind: BlockKind, found: Result, plain: Result, curve: Curve) -> Blocks | None:
    """Blocks, if they are enough faster than the same pictures in an ordinary batch.

    Args:
        kind: of the blocks.
        found: what came of them.
        plain: what came of the ordinary engine, just before or after and with as many threads.
        curve: of the ordinary engine, with all threads.
    """
    size = BLOCK[kind]
    blocks, ordinary = Curve(found.seconds), Curve(plain.seconds)
    # On a machine that was faster or slower before, the proportion of the two holds.
    share = blocks.estimate(size) / ordinary.estimate(size)
    seconds = share * curve.estimate(size)
    if share > _WORTHWHILE or curve.rate > size / seconds:
        return None
    slower = [count for count, taken in found.seconds.items() if taken > ordinary.estimate(count)]
    least = math.ceil(size * share) if kind in FIXED else 1 + max(slower, default=0)
    return Blocks(kind=kind, seconds=seconds, least=least)


class BlockEngine:
    """Computes blocks with one engine and what is left over with another; as many batches at a time as both can.

    Args:
        blocks: for up to `size` pictures at a time.
        rest: for any number of pictures.
        size: pictures in a block.
        least: pictures from which an incomplete block costs less than with `rest`.
    """

    def __init__(self, blocks: Engine, rest: Engine, size: int, least: int) -> None:
        self._blocks = blocks
        self._rest = rest
        self._size = size
        self._least = least

    def load(self) -> None:
        self._blocks.load()
        self._rest.load()

    def warm_up(self, max_batch: int) -> None:
        self._blocks.warm_up(min(max_batch, self._size))
        self._rest.warm_up(min(max_batch, self._least - 1))

    def predict(self, pictures: Pixels) -> Probabilities:
        left = len(pictures) % self._size
        whole = len(pictures) - (left if left < self._least else 0)
        starts = range(0, whole, self._size)
        parts = [self._blocks.predict(pictures[start : start + self._size]) for start in starts]
        if whole < len(pictures):
            parts.append(self._rest.predict(pictures[whole:]))
        return np.concatenate(parts)
