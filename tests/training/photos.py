"""CIFAR-10's test pictures as a user's photos: JPEG files in class folders, scaled up to 150x150."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

SIDE = 150


def write_photos(archive: Path, folder: Path, wanted: Mapping[str, tuple[int, int]]) -> Path:
    """Write photos of some classes below `folder`; the default model was not trained on them.

    Args:
        archive: the archive of the `cifar10_archive` fixture.
        wanted: for each class, the numbers of its first picture and of the one after its last.
    """
    seen = dict.fromkeys(wanted, 0)
    with tarfile.open(archive) as opened:
        for item in opened:
            split, label, name = Path(item.name).parts[-3:] if item.isfile() else ("", "", "")
            file = opened.extractfile(item) if split == "test" and label in wanted else None
            if file is None:
                continue
            number, seen[label] = seen[label], seen[label] + 1
            if number in range(*wanted[label]):
                (folder / label).mkdir(parents=True, exist_ok=True)
                with Image.open(io.BytesIO(file.read())) as picture:
                    larger = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                larger.save(folder / label / name, quality=90)
    return folder
