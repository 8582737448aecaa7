"""Pictures arrive upright, in RGB, and broken ones are refused by name."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vispec.errors import ImageError
from vispec.images import load_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A tiny file whose header promises a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_every_source_of_the_same_picture_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    data = encoded(two_halves(), kind)
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(data)
    expected = load_image(path)
    assert expected.mode == "RGB"
    assert expected.size == (40, 20)
    for source in (str(path), data, Image.open(path), np.asarray(expected), expected):
        assert np.array_equal(load_image(source), expected)


def test_the_orientation_of_a_camera_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    image = load_image(encoded(two_halves(), "PNG", exif=exif))
    assert image.size == (20, 40)
    assert image.getpixel((10, 5)) == RED
    assert image.getpixel((10, 35)) == BLUE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert load_image(image).getpixel((1, 1)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    image = two_halves().quantize(2)
    transparent = image.getpixel((0, 0))
    loaded = load_image(encoded(image, "PNG", transparency=transparent))
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((39, 0)) == BLUE


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, 0)
    for source in (
        ramp,
        encoded(Image.fromarray(ramp), "PNG"),
        encoded(Image.fromarray(ramp), "TIFF"),
    ):
        loaded = np.asarray(load_image(source))
        assert loaded.shape == (4, 256, 3)
        assert np.array_equal(loaded[0, :, 0], ramp[0] >> 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "I"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = two_halves().convert("L").convert(mode) if mode == "I" else two_halves().convert(mode)
    assert load_image(image).mode == "RGB"


def test_arrays_of_floats_booleans_and_grey_are_pictures() -> None:
    half = load_image(np.full((3, 5), 0.5))
    assert half.size == (5, 3)
    assert half.getpixel((0, 0)) == (128, 128, 128)
    assert load_image(np.ones((3, 5, 1), bool)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(np.zeros((3, 5, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((4, 4)) == RED


def test_the_source_is_left_as_it_was() -> None:
    image = two_halves()
    loaded = load_image(image)
    loaded.paste((0, 255, 0), (0, 0, 40, 20))
    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((3, 5, 2)), ["[3, 5, 2]", "channels last"]),
        (np.zeros((2, 3, 4, 5)), ["[2, 3, 4, 5]", "channels last"]),
        (np.full((3, 5), 200.0), ["200", "scale floats"]),
        (np.full((3, 5), np.nan), ["nan", "scale floats"]),
        (np.zeros((3, 5), np.int64), ["int64", "uint8"]),
        (np.zeros((0, 5, 3), np.uint8), ["no pixels", "5 x 0"]),
        (b"", ["empty"]),
        (b"hello, I am text", ["16 bytes", "not a picture", "JPEG"]),
        (17, ["int", "Pillow image"]),
    ],
)
def test_what_is_not_a_picture_is_refused(source: object, words: list[str]) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("this is not a picture\n" * 100)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path, reason in [
        (tmp_path / "absent.png", "no such file"),
        (tmp_path, "is a folder"),
        (text, "not a picture"),
        (empty, "empty"),
        ("https://example.org/cat.png", "download it first"),
        ("with\0zero", "cannot be opened"),
    ]:
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="half"):
        load_image(path)


def test_a_bomb_is_refused_from_its_header_before_decoding() -> None:
    with pytest.raises(ImageError, match=r"12000 x 12000 = 144 million .* limit of 64 million"):
        load_image(png_claiming(12_000, 12_000))
    with pytest.raises(ImageError, match="too large to decode safely"):
        load_image(png_claiming(60_000, 60_000))
    with pytest.raises(ImageError, match="40 x 20"):
        load_image(encoded(two_halves(), "PNG"), max_pixels=799)
    assert load_image(encoded(two_halves(), "PNG"), max_pixels=800).size == (40, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_give_a_picture_or_an_image_error_and_nothing_else(kind: str) -> None:
    chance = random.Random(0)
    data = encoded(two_halves(), kind)
    for _ in range(150):
        broken = bytearray(data[: chance.randint(1, len(data))])
        for _ in range(chance.randint(0, 6)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        with contextlib.suppress(ImageError):
            assert load_image(bytes(broken), max_pixels=1_000_000).mode == "RGB"
