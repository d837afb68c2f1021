import numpy as np
from numpy.typing import NDArray

def unfilter(data: bytes, rows: NDArray[np.uint8]) -> None: ...
