"""The errors of the training package. Each message says what is wrong and what to do next."""

from collections.abc import Sequence


class TrainingError(Exception):
    """Root of every error that this package raises on purpose; the run failed (exit code 1)."""

    exit_code = 1


class InputError(TrainingError):
    """The arguments, the recipe or the data are wrong (exit code 2).

    Args:
        problems: one sentence each, all that were found, so that a user can mend them in one go.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems: Sequence[str] = problems
        super().__init__("\n".join(problems))


class ImageError(TrainingError):
    """The bytes are not a picture that can be read."""


class UnsupportedImageError(ImageError):
    """The bytes are not a picture in one of the formats that are read."""


class CorruptImageError(ImageError):
    """The bytes begin like a picture but cannot be decoded to the end."""


class ImageTooLargeError(ImageError):
    """The picture has more pixels than the limit allows."""


class ArtifactError(TrainingError):
    """An artifact is missing, incomplete, changed after it was written, or cannot be written."""
