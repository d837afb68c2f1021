from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class Huffman:
    def __init__(self, counts: bytes, symbols: bytes) -> None: ...

def means(
    data: bytes,
    place: int,
    tables: Sequence[tuple[Huffman, Huffman]],
    steps: NDArray[np.int32],
    across: int,
    down: int,
    interval: int,
    pixels: NDArray[np.uint8],
) -> int: ...
def to_rgb(pixels: NDArray[np.uint8]) -> None: ...
