"""Blocks: large batches computed in parts of a fixed size, by a network that is made for that size."""

import numpy as np

from app.serving.engine import Engine, Pixels, Probabilities

BLOCK = 16  # pictures: eight cost a tenth more each, and 32 as much (docs/performance.md)


class BlockEngine:
    """Computes blocks with one engine and what is left over with another; as many batches at a time as both can.

    Args:
        blocks: for `BLOCK` pictures at a time; fewer cost as much.
        rest: for any number of pictures.
        least: pictures from which an incomplete block costs less than with `rest`.
    """

    def __init__(self, blocks: Engine, rest: Engine, least: int) -> None:
        self._blocks = blocks
        self._rest = rest
        self._least = least

    def load(self) -> None:
        self._blocks.load()
        self._rest.load()

    def warm_up(self, max_batch: int) -> None:
        self._blocks.warm_up(min(max_batch, BLOCK))
        self._rest.warm_up(min(max_batch, self._least - 1))

    def predict(self, pictures: Pixels) -> Probabilities:
        left = len(pictures) % BLOCK
        whole = len(pictures) - (left if left < self._least else 0)
        parts = [self._blocks.predict(pictures[start : start + BLOCK]) for start in range(0, whole, BLOCK)]
        if whole < len(pictures):
            parts.append(self._rest.predict(pictures[whole:]))
        return np.concatenate(parts)
