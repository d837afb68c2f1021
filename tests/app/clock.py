"""A clock that stands still until a test sets it."""


class Clock:
    """Seconds; `now` is what the clock shows."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
