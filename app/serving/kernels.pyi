from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

KINDS: Mapping[str, int]
ACTIVATIONS: Mapping[str, int]
ROWS: Mapping[int, int]
WIDTHS: tuple[int, ...]

class Network:
    side: int
    def __init__(
        self,
        width: int,
        maps: NDArray[np.int64],
        groups: NDArray[np.int64],
        layers: NDArray[np.int64],
        weights: Sequence[NDArray[np.float32]],
        shifts: Sequence[NDArray[np.float32]],
        scale: NDArray[np.float64],
        shift: NDArray[np.float64],
        outputs: int,
        scratch: int,
    ) -> None: ...

class Computer:
    def __init__(self, network: Network, threads: int) -> None: ...
    def compute(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]: ...
