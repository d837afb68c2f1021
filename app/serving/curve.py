"""The cost curve of an engine: what a batch costs, measured, and which batch size to use."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A batch size that reaches this share of the highest rate is as good: more pictures would only wait for each other.
_ENOUGH = 0.97
_LEAST_RUNS, _MOST_RUNS = 2, 20
_SECONDS = 0.5  # for runs above the least

# Seconds from which a batch is worth dividing, and that a picture in it has to cost, about as much as in Python: with
# cheaper pictures the event loop is busy all the time, and two batches compete with it for two processors.
_LONG, _DEAR = 0.01, 0.0003


@dataclass(frozen=True)
class Curve:
    """Seconds that a batch takes, by the number of pictures in it; at least the batch of one is there."""

    seconds: Mapping[int, float]

    @property
    def rate(self) -> float:
        """The highest rate, in pictures a second."""
        return max(size / seconds for size, seconds in self.seconds.items())

    @property
    def batch(self) -> int:
        """The smallest batch that is computed at nearly the highest rate."""
        return self.within(1 / _ENOUGH)

    def whole(self, divided: bool) -> int:
        """The largest batch that all threads compute together, if larger ones are `divided` or if none is."""
        return min(self.batch, self.undivided) if divided else self.batch

    def within(self, factor: float) -> int:
        """The smallest batch whose pictures cost at most `factor` times what they do in the best one."""
        return min(size for size, seconds in self.seconds.items() if factor * size / seconds >= self.rate)

    @property
    def dear(self) -> bool:
        """Whether a picture costs more in the network than in Python."""
        return self.rate * _DEAR <= 1

    @property
    def undivided(self) -> int:
        """The largest batch that is better than two side by side, each with half of the threads.

        Those are no faster by themselves, but neither waits for the other: whatever takes a processor from one thread
        of a batch (the event loop, another program) keeps all its threads waiting at the end of each layer.
        """
        if not self.dear:
            return sys.maxsize
        return max(1, math.ceil(_LONG * self.rate) - 1)

    def estimate(self, size: int) -> float:
        """Seconds that a batch of `size` pictures takes: those of the next larger one that was measured."""
        larger = [measured for measured in self.seconds if measured >= size]
        if larger:
            return self.seconds[min(larger)]
        largest = max(self.seconds)
        return self.seconds[largest] * size / largest


def measure(compute: Callable[[int], object], max_batch: int, hopeless: float = 0) -> Curve:
    """Time batches of 1, 2, 4, ... and `max_batch` pictures.

    Ends early where larger batches bring no more pictures a second, and where the engine is slower than `hopeless`
    pictures a second. The fastest of several runs counts: whatever else the machine does can only make a run slower.
    The sizes take turns, so that a machine that is slower for a while is so for all of them.

    Args:
        compute: computes a batch of the given size.
        max_batch: largest size.
        hopeless: a rate that is not worth further measuring if it was not reached at eight pictures.
    """
    seconds: dict[int, float] = {}
    sizes = [1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch]
    for size in [*sizes, max_batch]:
        compute(size)  # the first run of a size generates code
        seconds[size] = min(_time(compute, size) for _ in range(_LEAST_RUNS))
        rates = [done / taken for done, taken in seconds.items()]
        saturated = len(rates) > 3 and max(rates[-2:]) < max(rates[:-2]) / _ENOUGH
        if size >= 8 and max(rates) < hopeless:
            return Curve(seconds)
        if saturated:
            break
    end = time.perf_counter() + _SECONDS
    for _ in range(_MOST_RUNS - _LEAST_RUNS):
        if time.perf_counter() > end:
            break
        seconds = {size: min(taken, _time(compute, size)) for size, taken in seconds.items()}
    return Curve(seconds)


def _time(compute: Callable[[int], object], size: int) -> float:
    started = time.perf_counter()
    compute(size)
    return time.perf_counter() - started
