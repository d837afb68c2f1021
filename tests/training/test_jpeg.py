"""Large JPEGs at 1/8 of their size."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import needs
from tests.encoding import encode
from training import jpeg
from training.picture import decode

pytestmark = pytest.mark.usefixtures("compiled")

SUBSAMPLING = st.sampled_from(["4:4:4", "4:2:2", "4:2:0"])


@pytest.fixture
def compiled() -> None:
    needs.compiled()


def photo(width: int, height: int, seed: int = 1, grain: float = 20) -> Image.Image:
    """Smooth colours with noise on top."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, grain, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def by_pillow(data: bytes) -> Image.Image:
    """The same picture, read by Pillow."""
    opened = Image.open(io.BytesIO(data))
    opened.draft(None, (opened.width // 8, opened.height // 8))
    opened.load()
    return opened


def assert_same(data: bytes) -> None:
    found = jpeg.read_eighth(data)
    assert found is not None
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(by_pillow(data)))


@given(
    width=st.integers(8, 200),
    height=st.integers(8, 200),
    seed=st.integers(0, 1000),
    grain=st.sampled_from([0, 5, 60, 200]),
    quality=st.integers(1, 100),
    subsampling=SUBSAMPLING,
    optimize=st.booleans(),
    interval=st.integers(0, 9),
)
def test_pixels_are_those_of_pillow(
    width: int, height: int, seed: int, grain: float, quality: int, subsampling: str, optimize: bool, interval: int
) -> None:
    options = {"quality": quality, "subsampling": subsampling, "optimize": optimize, "restart_marker_blocks": interval}
    assert_same(encode(photo(width, height, seed, grain), "JPEG", **options))


@pytest.mark.parametrize("colour", ["black", "white", "red", "lime", "blue", "cyan", "#7f8081"])
def test_plain_colours_are_those_of_pillow(colour: str) -> None:
    assert_same(encode(Image.new("RGB", (160, 120), colour), "JPEG"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(640, 480)
    plain, turned = (decode(encode(image, "JPEG", **options), 32) for options in ({}, {"exif": exif}))
    assert np.array_equal(turned, plain) == (orientation == 1)
    assert turned.mean() == pytest.approx(plain.mean(), abs=1)


def test_first_picture_of_several_is_read() -> None:
    assert_same(encode(photo(300, 200, 1), "MPO", save_all=True, append_images=[photo(300, 200, 2)]))


def test_adobe_marker_that_says_ycbcr_is_read() -> None:
    data = encode(photo(64, 48), "JPEG")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    assert_same(data[:2] + adobe + b"\x01" + data[2:])
    assert jpeg.read_eighth(data[:2] + adobe + b"\x00" + data[2:]) is None


@pytest.mark.parametrize(
    ("mode", "format_", "options"),
    [
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGB", "WEBP", {}),
    ],
)
def test_others_are_left_to_the_general_reader(mode: str, format_: str, options: dict[str, bool]) -> None:
    assert jpeg.read_eighth(encode(photo(64, 64).convert(mode), format_, **options)) is None


def test_picture_that_is_cut_short_is_left_to_the_general_reader() -> None:
    data = encode(photo(80, 64), "JPEG")
    assert all(jpeg.read_eighth(data[:length]) is None for length in range(len(data)))


@settings(max_examples=500)
@given(subsampling=SUBSAMPLING, interval=st.integers(0, 4), data=st.data())
def test_damaged_picture_is_left_to_the_general_reader_or_read_alike(
    subsampling: str, interval: int, data: st.DataObject
) -> None:
    good = encode(photo(48, 40), "JPEG", subsampling=subsampling, restart_marker_blocks=interval)
    damaged = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    found = jpeg.read_eighth(bytes(damaged))
    assert found is None or np.array_equal(np.asarray(found), np.asarray(by_pillow(bytes(damaged))))
