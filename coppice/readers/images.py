"""Reads a folder of images by class: one folder for each class, named as the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coppice.data import Raw, labelled
from coppice.errors import DataError
from coppice.readers.limits import bound, load_extra, unreadable

#: Suffixes that are read, and the decoders that may be tried on them.
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm"}
_FORMATS = ("PNG", "JPEG", "BMP", "PPM")

#: Pillow's name for 8-bit images of so many channels.
_MODES = {1: "L", 3: "RGB"}
_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def read_images(folder: Path, input_shape: tuple[int, ...]) -> Raw:
    """Read all images as bytes, (N, *input_shape), ordered by class and file name."""
    if len(input_shape) != 3 or input_shape[0] not in _MODES:
        raise DataError(
            f"{folder}: images have [1 or 3, height, width] as their shape, the run wants "
            f"{list(input_shape)} (data.input_shape)"
        )
    pillow = load_extra("PIL.Image", "images", folder)
    files = _files(folder)
    if not files:
        raise unreadable(folder, "it holds no images")
    bound(folder, len(files) * int(np.prod(input_shape)))
    inputs = np.empty((len(files), *input_shape), np.uint8)
    for number, file in enumerate(files):
        inputs[number] = _pixels(pillow, file, input_shape)
    return labelled(inputs, [file.parent.name for file in files])


def _files(folder: Path) -> list[Path]:
    found = []
    for child in sorted(_visible(folder)):
        if not child.is_dir():
            raise unreadable(child, "not the folder of a class")
        for file in sorted(_visible(child)):
            if file.suffix.lower() not in _SUFFIXES or not file.is_file():
                allowed = ", ".join(sorted(_SUFFIXES))
                raise unreadable(file, f"not an image that can be read ({allowed}); remove it")
            found.append(file)
    return found


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _pixels(pillow: Any, path: Path, input_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    channels, height, width = input_shape
    try:
        with pillow.open(path, formats=_FORMATS) as image:
            # The size stands in the file's head: nothing is decoded before it is right.
            if image.size != (width, height):
                raise DataError(
                    f"{path} is {image.height} pixels high and {image.width} wide; the run wants "
                    f"{height} and {width}: resize it"
                )
            if image.mode not in _EIGHT_BIT:
                raise DataError(f"{path} has pixels of mode {image.mode!r}; save it with 8 bits")
            pixels = np.asarray(image.convert(_MODES[channels]))
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise unreadable(path, f"not a whole image ({error})") from None
    return pixels[np.newaxis] if channels == 1 else np.moveaxis(pixels, -1, 0)
