"""Labels that people give: the name of a class, and of its folder when pictures are packed to train on."""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from app.errors import InvalidRequestError
from training import source

MAX_LENGTH = 255  # of a folder's name
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of control characters, broken letters, line ends


def check(label: str) -> str:
    """The label without spaces around it and with composed accents.

    Raises:
        ValueError: no folder of a class can have that name.
    """
    label = unicodedata.normalize("NFC", label).strip()
    if not label:
        raise ValueError("is empty; name a class")
    if len(label) > MAX_LENGTH:
        raise ValueError(f"has {len(label)} characters; at most {MAX_LENGTH} are taken")
    if any(unicodedata.category(character) in _UNPRINTABLE for character in label):
        raise ValueError("holds a control character or a broken letter; write it in one line of plain text")
    if "/" in label or "\\" in label:
        raise ValueError("holds a slash; a class is one folder, so write a dash instead")
    if source.is_litter(PurePosixPath(label)):
        raise ValueError("begins with a dot or is a system's own name; such folders are not read when training")
    return label


Label = Annotated[str, AfterValidator(check)]


def check_spelling(label: str, known: Iterable[str]) -> None:
    """Return if the label is one of the known ones, or like none of them.

    Raises:
        InvalidRequestError: it differs from one only in case or spaces, and would become a second class beside it.
    """
    known = set(known)
    like = [name for name in known if _folded(name) == _folded(label)]
    if like and label not in known:
        raise InvalidRequestError(
            f"The label {label!r} differs only in case or spaces from {like[0]!r}, which is there already. Send that."
        )


def _folded(label: str) -> str:
    return "".join(label.casefold().split())
