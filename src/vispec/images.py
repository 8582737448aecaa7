"""Pictures from wherever they come, as upright RGB."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vispec.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
MAX_PIXELS = 64_000_000
FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture as the model's processor expects it.

    The orientation that a camera recorded is applied, transparency is laid on white, palettes and
    16-bit samples become 8-bit RGB. Of an animation the first frame is taken.

    Args:
        source: a path, the bytes of a file, a Pillow image, or an array `[height, width]`,
            `[height, width, 1]`, `[height, width, 3]` or `[height, width, 4]` of uint8, of uint16,
            or of floats in [0, 1]. It is left as it was.
        max_pixels: the most pixels to decode, checked before any is decoded.

    Returns:
        A new RGB image.

    Raises:
        ImageError: if there is no such file, it is not a picture, is cut short, has no pixels or
            more than `max_pixels`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "the picture given"
        return _upright_rgb(source, str(name), max_pixels)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"the {len(source)} bytes given", max_pixels)
    if isinstance(source, str | os.PathLike):
        name = f"'{os.fspath(source)}'"
        with _opened(source, name) as file:
            return _decode(file, name, max_pixels)
    raise ImageError.unusable(
        f"an object of type {type(source).__name__}",
        "there is no way to decode it",
        "give a path, bytes, a Pillow image or an array",
    )


def _opened(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        reason = "there is no such file"
        is_address = "://" in os.fspath(path)
        fix = "download it first" if is_address else f"check the path (now in '{os.getcwd()}')"
    except IsADirectoryError:
        reason, fix = "it is a folder", "name a picture inside it"
    except PermissionError:
        reason, fix = "it may not be read", "change its permissions"
    except (OSError, ValueError) as error:
        reason, fix = f"it cannot be opened ({error})", "check the path"
    raise ImageError.unusable(name, reason, fix)


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    if stream.seekable():
        if not stream.seek(0, os.SEEK_END):
            raise ImageError.unusable(name, "it is empty", "give a file with a picture in it")
        stream.seek(0)
    with _explained(name):
        image = Image.open(stream)
    return _upright_rgb(image, name, max_pixels)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what Pillow raises on broken files into one kind of error, and silence its remarks."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
        return
    except UnidentifiedImageError:
        reason, fix = "it is not a picture in a known format", f"give a {FORMATS} file"
    except Image.DecompressionBombError as error:
        reason, fix = f"it is too large to decode safely ({error})", "scale it down first"
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged data
        reason = f"the file is damaged or cut short ({error})"
        fix = "copy or download it again"
    raise ImageError.unusable(name, reason, fix)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError.unusable(
            name, f"it has no pixels ({width} x {height})", "give a picture with some"
        )
    if width * height > max_pixels:
        raise ImageError.unusable(
            name,
            f"it has {width} x {height} = {width * height / 1e6:,.0f} million pixels, "
            f"more than the limit of {max_pixels / 1e6:,.0f} million",
            "scale it down first (the model sees a small version anyway)",
        )


def _upright_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(*image.size, name, max_pixels)
    with _explained(name):
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = _eight_bit(np.asarray(image))
        elif image.mode == "F":
            image = _from_array(np.asarray(image), max_pixels)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _eight_bit(samples: np.ndarray[Any, Any]) -> Image.Image:
    """Grey from integer samples of up to 16 bits."""
    return Image.fromarray((np.clip(samples, 0, 65535) >> 8).astype(np.uint8))


def _from_array(array: np.ndarray[Any, Any], max_pixels: int) -> Image.Image:
    name = f"an array of shape {list(array.shape)} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError.unusable(
            name, "it is not laid out as a picture", "give [height, width, 3], channels last"
        )
    _check_size(array.shape[1], array.shape[0], name, max_pixels)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ImageError.unusable(
                name, f"its values run from {low:g} to {high:g}", "scale floats to [0, 1]"
            )
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError.unusable(
            name, "its samples are of no usual type", "give uint8, uint16, or floats in [0, 1]"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _upright_rgb(Image.fromarray(np.ascontiguousarray(array)), name, max_pixels)
