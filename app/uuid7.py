"""Version 7 UUIDs (RFC 9562): names that nobody can guess, and that sort by the time at which they were made."""

import time
import uuid
from secrets import randbits

_RANDOM_BITS = 74
_LOW_BITS = 62  # of the random ones: those behind the variant


def new() -> str:
    """Make one. Python has its own from 3.14 on."""
    random = randbits(_RANDOM_BITS)
    return _text(time.time_ns() // 1_000_000, random >> _LOW_BITS, random & ((1 << _LOW_BITS) - 1))


def floor(seconds: float) -> str:
    """The smallest one of a moment, in seconds since 1970: those made before it are smaller."""
    return _text(max(0, int(seconds * 1000)), 0, 0)


def moment(name: str) -> float | None:
    """When one was made, in seconds since 1970; None for what is no UUID of version 7."""
    try:
        found = uuid.UUID(name)
    except ValueError:
        return None
    return (found.int >> 80) / 1000 if found.version == 7 else None


def _text(milliseconds: int, high: int, low: int) -> str:
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << _LOW_BITS | low))
