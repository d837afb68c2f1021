"""Decoding off the event loop."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from app.serving.image import Decoder
from tests.app.pictures import draw, png
from tests.encoding import encode
from training import picture
from training.errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(max_pixels=10_000, processes=1)
    yield made
    made.close()


def test_pixels_are_those_of_training(decoder: Decoder) -> None:
    data = [encode(draw(seed), format_) for seed, format_ in enumerate(("PNG", "JPEG", "WebP", "GIF", "BMP"))]

    async def scenario() -> None:
        found = await asyncio.gather(*(decoder.decode(entry, 32) for entry in data))
        for pixels, entry in zip(found, data, strict=True):
            assert np.array_equal(pixels, picture.decode(entry, 32))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnsupportedImageError),
        (png(1)[:-40], CorruptImageError),
        (encode(draw(1, 101, 100)), ImageTooLargeError),
    ],
)
def test_failure_is_of_its_kind(decoder: Decoder, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        asyncio.run(decoder.decode(data, 32))
