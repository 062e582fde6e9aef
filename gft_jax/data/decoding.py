"""Image files as bytes, by Pillow."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

Mode = Literal["L", "RGB", "RGBA"]
CHANNELS: dict[str, int] = {"L": 1, "RGB": 3, "RGBA": 4}
"""Channels of the modes that images are read in."""
_NATURAL: dict[str, Mode] = {
    "1": "L",
    "L": "L",
    "P": "RGB",
    "RGB": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LA": "RGBA",
    "PA": "RGBA",
    "RGBA": "RGBA",
}


def natural_mode(image: Image.Image) -> Mode:
    """The mode that shows all of an image: grey, colour, or colour with transparency.

    Raises:
        ValueError: if its pixels are not of 8 bits.
    """
    if image.mode not in _NATURAL:
        raise ValueError(
            f"its pixels are of Pillow's mode {image.mode}, not of 8 bits a channel: convert it first"
        )
    return "RGBA" if image.has_transparency_data else _NATURAL[image.mode]


def decode(path: Path, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    """An image as bytes ``[height, width, channels]``, upright as its EXIF orientation says.

    Args:
        path: of the file; of several frames the first is taken.
        mode: "L", "RGB" or "RGBA". What is transparent is shown on white where the mode has no transparency.
        size: ``(height, width)``: the largest part of this shape around the centre is cut out, and resized by bicubic
            interpolation with antialiasing; None for the image as it is.
    """
    with Image.open(path) as file:
        image = converted(ImageOps.exif_transpose(file), mode)
    if size is not None and size != (image.height, image.width):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, CHANNELS[mode])


def converted(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode of `CHANNELS`."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode in ("CMYK", "YCbCr"):  # which Pillow converts to RGB alone
        image = image.convert("RGB")
    return image.convert(mode)
