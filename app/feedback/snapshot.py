"""The snapshot: the labelled pictures of a model, packed as an archive of class folders to train on."""

import hashlib
import zipfile
from collections import Counter
from pathlib import Path

from app.errors import DatasetError
from app.feedback.store import Store

MIN_PICTURES = 3  # of a class: one to train on, to choose the best epoch by, and to judge by
_KINDS = {
    b"\xff\xd8\xff": ("image/jpeg", ".jpg"),
    b"\x89PNG": ("image/png", ".png"),
    b"GIF8": ("image/gif", ".gif"),
    b"RIFF": ("image/webp", ".webp"),
    b"BM": ("image/bmp", ".bmp"),
}


def kind(picture: bytes) -> tuple[str, str]:
    """Media type and file ending of a picture that was decoded before, by its first bytes."""
    return next(found for start, found in _KINDS.items() if picture.startswith(start))


def write(store: Store, model: str, path: Path) -> list[str]:
    """Pack the pictures; the same ones with the same labels give the same bytes.

    Copies of a picture are one picture, whose label is the one that was given last.

    Args:
        model: whose predictions are meant.
        path: of the zip that is written.

    Returns:
        What the user should know: classes that are left out because they have too few pictures, and copies.

    Raises:
        DatasetError: no class has enough pictures.
    """
    labelled, copies = _distinct(store, model)
    counts = Counter(labelled.values())
    few = [
        f"Class {label!r} is left out: it has {count} labelled {_noun(count)} and needs {MIN_PICTURES}."
        for label, count in sorted(counts.items())
        if count < MIN_PICTURES
    ]
    told = few
    if copies:
        told = [*few, f"Copies among the labelled pictures: {copies}. A picture counts once, with its latest label."]
    if len(few) == len(counts):
        raise DatasetError([_missing(model), *told])
    chosen = {name: label for name, label in sorted(labelled.items()) if counts[label] >= MIN_PICTURES}
    with zipfile.ZipFile(path, "w") as archive:
        for name, picture in store.pictures(chosen):
            archive.writestr(zipfile.ZipInfo(f"{chosen[name]}/{name}{kind(picture)[1]}"), picture)
    return told


def _distinct(store: Store, model: str) -> tuple[dict[str, str], int]:
    """Label by id of the oldest prediction of each labelled picture, and the number of the others."""
    labels = dict(store.labelled(model))
    oldest: dict[bytes, str] = {}
    latest: dict[bytes, str] = {}
    count = 0
    for name, picture in store.pictures(labels):
        digest = hashlib.sha256(picture).digest()
        oldest[digest] = min(name, oldest.get(digest, name))
        latest[digest] = labels[name]
        count += 1
    return {name: latest[digest] for digest, name in oldest.items()}, count - len(oldest)


def _noun(count: int) -> str:
    return "picture" if count == 1 else "pictures"


def _missing(model: str) -> str:
    return (
        f"Too few predictions of the model {model!r} are labelled: a class needs {MIN_PICTURES}. "
        f"GET /feedback/queue?model={model} lists what can be labelled, POST /feedback with id and label does it."
    )
