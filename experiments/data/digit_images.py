"""Scikit-learn's digits as folders of images, for the experiment on images: real pixels that need no download.

    python -m experiments.data.digit_images FOLDER

writes ``FOLDER/old/0`` to ``FOLDER/old/4`` and ``FOLDER/new/5`` to ``FOLDER/new/9``: 901 and 896 grey PNG files of
16 x 16 pixels, each an 8 x 8 image enlarged by bicubic interpolation.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

OLD, NEW = range(5), range(5, 10)
SIDE = 16
"""Pixels of an enlarged image."""


def write_digits(folder: Path, side: int = SIDE, num_per_class: int | None = None) -> None:
    """Writes one PNG file for each image, in a folder for each class.

    Args:
        folder: a new folder, or an empty one.
        side: pixels of an image.
        num_per_class: the first so many of each class; None for all.

    Raises:
        ValueError: if the folder holds something.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder")
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for name, classes in (("old", OLD), ("new", NEW)):
        for label in classes:
            of_class = folder / name / str(label)
            of_class.mkdir(parents=True)
            for number in np.flatnonzero(labels == label)[:num_per_class]:
                image = Image.fromarray(pixels[number]).resize((side, side), Image.Resampling.BICUBIC)
                image.save(of_class / f"{number:04d}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 where the folder cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.digit_images",
        description="Write scikit-learn's digits as PNG files, 0 to 4 in FOLDER/old, 5 to 9 in FOLDER/new.",
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    folder = parser.parse_args(arguments).folder
    try:
        write_digits(folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"digits 0 to 4: {folder / 'old'}; 5 to 9: {folder / 'new'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
