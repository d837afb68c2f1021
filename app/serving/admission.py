"""Admission: how much may be in work, and when a client that was turned away should come back."""

import math
from types import TracebackType

from app.errors import OverloadedError
from app.serving.pace import Pace

_LONGEST_RETRY_SECONDS = 60  # should the service stand still, nobody is sent away for as long as it seems to need then


class Admission:
    """Bounds what is in work at one time: pictures that are read, decoded or computed, and the bytes of them.

    A request is let in while the limits are not reached, and may take them past it: one large request is never too
    large on its own, and what is in work stays below the limits plus one request. Nor is it let in if the pictures
    that have been read before it will take too long.

    Args:
        max_pictures: most pictures in work.
        max_bytes: most bytes of request bodies in work.
        max_wait: longest predicted wait, in seconds.
        pace: predicts it.
    """

    def __init__(self, max_pictures: int, max_bytes: int, max_wait: float = math.inf, pace: Pace | None = None) -> None:
        self.max_pictures = max_pictures
        self.max_bytes = max_bytes
        self.max_wait = max_wait
        self.pace = pace or Pace()
        self.pictures = 0
        self.bytes = 0

    def enter(self, size: int) -> "Ticket":
        """Take a place for a request of one picture (`with admission.enter(size) as ticket: ...`).

        Args:
            size: bytes of its body, as announced.

        Raises:
            OverloadedError: there is no room; it says when to come back.
        """
        if error := self.refusal():
            raise error
        ticket = Ticket(self)
        ticket.read(size)
        ticket.count(1)
        return ticket

    def refusal(self, before: int = 0) -> OverloadedError | None:
        """The error for a picture that comes now, if there is no room for another one after so many `before` it."""
        if self.pictures + before >= self.max_pictures:
            return self.full(f"{self.max_pictures} pictures are in work")
        return self.delay()

    def delay(self) -> OverloadedError | None:
        """The error for a picture that comes now, if it would wait too long."""
        if self.pace.wait() > self.max_wait:
            return self.full(f"The pictures in work take more than {self.max_wait:g} seconds")
        return None

    def full(self, reason: str) -> OverloadedError:
        """The error for a client that is turned away for `reason`; the wait is for what is in work now."""
        seconds = min(max(1, math.ceil(self.pace.wait())), _LONGEST_RETRY_SECONDS)
        return OverloadedError(
            f"{reason}, which is all that may be. Wait as long as Retry-After says, then send the request again.",
            seconds,
        )


class Ticket:
    """What one request holds, until the block ends in which it is entered."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._begun = False
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
            raise admission.full(f"{admission.bytes / 1e6:.0f} MB of pictures are in work")
        admission.bytes += size - self.bytes
        self.bytes = size

    def begin(self, pictures: int) -> None:
        """Hold places for `pictures` in all, now that they have been read: from here on, time is the service's.

        Raises:
            OverloadedError: others that were read meanwhile take too long.
        """
        if error := self._admission.delay():
            raise error
        self.count(pictures)
        self._begun = True
        self._admission.pace.begin(pictures)

    def done(self, pictures: int = 1) -> None:
        """Give the places of pictures back, which are answered or given up."""
        self.count(self.pictures - pictures)
        if self._begun:
            self._admission.pace.end(pictures)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self.pictures:
            self.done(self.pictures)
        self._admission.bytes -= self.bytes
