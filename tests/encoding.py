"""Pictures as files hold them, for the tests of every package."""

import io
from typing import Any

from PIL import Image


def encode(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    """Encode a picture."""
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()
