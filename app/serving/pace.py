"""Pace: how long pictures take, measured on those that were done last, and how long those in work still will."""

import math
import time
from collections.abc import Callable

_MEMORY_SECONDS = 5.0  # of work; what was done earlier counts less and less
_LEAST_SECONDS = 1.0  # of work, before which nothing is said: the first pictures after a start may take longer


class Pace:
    """Measures the seconds of work that one picture costs, whatever they go to: decoding, the network, HTTP.

    Only time counts in which there is work, so that neither quiet hours nor clients that send slowly look like a slow
    service. Sums decay with that time (the exponentially weighted moving average of a ratio), because batches end in
    bursts: the time between two single pictures says little.

    Args:
        clock: seconds.

    Attributes:
        working: pictures that are worked on, or wait for it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.working = 0
        self._clock = clock
        self._since = 0.0  # when work began, or when a picture was done last
        self._seconds = 0.0
        self._done = 0.0

    def begin(self, pictures: int) -> None:
        """Take note that work on pictures begins."""
        if not self.working:
            self._since = self._clock()
        self.working += pictures

    def end(self, pictures: int) -> None:
        """Take note that they are done, or given up."""
        now = self._clock()
        taken, self._since = now - self._since, now
        kept = math.exp(-taken / _MEMORY_SECONDS)
        self._seconds = kept * self._seconds + taken
        self._done = kept * self._done + pictures
        self.working -= pictures

    def seconds(self) -> float:
        """Seconds of work that a picture costs; 0 while too little was done to tell."""
        running = self._clock() - self._since if self.working else 0.0
        seconds = self._seconds + running
        return seconds / max(1.0, self._done) if seconds >= _LEAST_SECONDS else 0.0

    def wait(self) -> float:
        """Predicted seconds until all pictures in work are done (Little's law)."""
        return self.working * self.seconds() if self.working else 0.0
