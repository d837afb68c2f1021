"""Admission: how much may be in work, and when a client that was turned away should come back."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import OverloadedError

_WEIGHT = 0.1  # of the newest request in the mean time that requests take


class Admission:
    """Bounds the pictures, and the bytes of them, that are read, decoded or computed at one time.

    A request is let in while the limits are not reached, and may take them past it: one large request is never too
    large on its own, and what is in work stays below the limits plus one request.

    Args:
        max_pictures: most pictures in work.
        max_bytes: most bytes of request bodies in work.
    """

    def __init__(self, max_pictures: int, max_bytes: int) -> None:
        self.max_pictures = max_pictures
        self.max_bytes = max_bytes
        self.pictures = 0
        self.bytes = 0
        self._mean_seconds = 0.0

    @contextmanager
    def enter(self, size: int) -> Iterator["Ticket"]:
        """Take a place for a request of one picture until the block ends; `Ticket` takes more.

        Args:
            size: bytes of its body, as announced.

        Raises:
            OverloadedError: there is no room; it says when to come back.
        """
        if self.pictures >= self.max_pictures:
            raise self.refusal(f"{self.pictures} pictures are in work")
        ticket = Ticket(self)
        ticket.read(size)
        ticket.count(1)
        started = time.monotonic()
        try:
            yield ticket
        finally:
            self.pictures -= ticket.pictures
            self.bytes -= ticket.bytes
            self._mean_seconds += _WEIGHT * (time.monotonic() - started - self._mean_seconds)

    def retry_after(self) -> int:
        """Seconds after which there should be room: by Little's law, about the mean time that requests took lately."""
        return max(1, math.ceil(self._mean_seconds))

    def refusal(self, reason: str) -> OverloadedError:
        """The error for a client that is turned away for `reason`."""
        return OverloadedError(
            f"{reason}, which is all that may be. Wait as long as Retry-After says, then send the request again.",
            self.retry_after(),
        )


class Ticket:
    """What one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.pictures = 0
        self.bytes = 0

    def count(self, pictures: int) -> None:
        """Hold places for `pictures` in all."""
        self._admission.pictures += pictures - self.pictures
        self.pictures = pictures

    def read(self, size: int) -> None:
        """Hold room for a body of `size` bytes in all, of which fewer may have been announced.

        Raises:
            OverloadedError: other requests take all the room already.
        """
        if size <= self.bytes:
            return
        admission = self._admission
        if admission.bytes - self.bytes >= admission.max_bytes:
            raise admission.refusal(f"{admission.bytes / 1e6:.0f} MB of pictures are in work")
        admission.bytes += size - self.bytes
        self.bytes = size
