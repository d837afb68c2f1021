"""Admission: how many pictures may be in work, and when a client that was turned away should come back."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import OverloadedError

_WEIGHT = 0.1  # of the newest request in the mean time that requests take


class Admission:
    """Bounds the pictures that are read, decoded or computed at one time.

    Args:
        limit: most pictures in work.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pictures = 0
        self._mean_seconds = 0.0

    @contextmanager
    def enter(self) -> Iterator["Ticket"]:
        """Take a place for a request of one picture until the block ends; `Ticket.grow` takes more.

        Raises:
            OverloadedError: there is no room; it says when to come back.
        """
        ticket = Ticket(self)
        ticket.grow(1)
        started = time.monotonic()
        try:
            yield ticket
        finally:
            self.pictures -= ticket.pictures
            self._mean_seconds += _WEIGHT * (time.monotonic() - started - self._mean_seconds)

    def retry_after(self) -> int:
        """Seconds after which there should be room: by Little's law, about the mean time that requests took lately."""
        return max(1, math.ceil(self._mean_seconds))


class Ticket:
    """The places that one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.pictures = 0

    def grow(self, pictures: int) -> None:
        """Hold places for `pictures` in all.

        Raises:
            OverloadedError: there is no room; the places held before stay held.
        """
        admission = self._admission
        extra = pictures - self.pictures
        if admission.pictures + extra > admission.limit:
            raise OverloadedError(
                f"{admission.pictures} pictures are in work and {admission.limit} may be. "
                "Wait as long as Retry-After says, then send the request again.",
                admission.retry_after(),
            )
        admission.pictures += extra
        self.pictures = pictures
