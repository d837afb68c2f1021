"""A fake engine for tests of whatever drives an engine: every answer tells which picture it was computed from."""

import threading
from collections.abc import Collection

import numpy as np

from app.serving.engine import Pixels, Probabilities


class FakeEngine:
    """Answers a picture with its first byte, fails any batch with a poisonous picture in it, and waits when told to.

    Args:
        poison: first bytes of the pictures that cannot be computed.

    Attributes:
        batches: first bytes of the pictures of every batch that it was given, failed ones too.
        gate: batches wait before they are computed while this is clear.
        entered: released once for every batch that has arrived at the gate.
    """

    name = "fake"

    def __init__(self, poison: Collection[int] = ()) -> None:
        self.poison = frozenset(poison)
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    @staticmethod
    def picture(identity: int) -> Pixels:
        """A picture, uint8 [3, 1, 1], that is answered with `identity` (0 to 255)."""
        return np.full((3, 1, 1), identity, np.uint8)

    def load(self) -> None:
        """There is nothing to load."""

    def warm_up(self, max_batch: int) -> None:
        """There is nothing to warm up."""

    def predict(self, pictures: Pixels) -> Probabilities:
        """Float32 [N, 1]: the pictures' first bytes."""
        identities = [int(picture[0, 0, 0]) for picture in pictures]
        self.batches.append(identities)
        self.entered.release()
        self.gate.wait()
        poisonous = self.poison.intersection(identities)
        if poisonous:
            raise ValueError(f"poisonous pictures: {sorted(poisonous)}")
        return np.array(identities, np.float32)[:, None]
