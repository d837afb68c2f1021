"""The snapshot: the labelled pictures of a model, packed as an archive of class folders to train on."""

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

    Args:
        model: whose predictions are meant.
        path: of the zip that is written.

    Returns:
        What the user should know: classes that are left out because they have too few pictures.

    Raises:
        DatasetError: no class has enough pictures.
    """
    labelled = store.labelled(model)
    counts = Counter(label for _, label in labelled)
    few = [
        f"Class {label!r} is left out: it has {count} labelled pictures and needs {MIN_PICTURES}."
        for label, count in sorted(counts.items())
        if count < MIN_PICTURES
    ]
    if len(few) == len(counts):
        raise DatasetError([_missing(model), *few])
    chosen = {name: label for name, label in labelled if counts[label] >= MIN_PICTURES}
    with zipfile.ZipFile(path, "w") as archive:
        for name, picture in store.pictures(chosen):
            archive.writestr(zipfile.ZipInfo(f"{chosen[name]}/{name}{kind(picture)[1]}"), picture)
    return few


def _missing(model: str) -> str:
    return (
        f"Too few predictions of the model {model!r} are labelled: a class needs {MIN_PICTURES}. "
        f"GET /feedback/queue?model={model} lists what can be labelled, POST /feedback with id and label does it."
    )
