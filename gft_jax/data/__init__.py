"""Datasets that are larger than memory, or lie in files: arrays on disk, folders of images, grain sources.

All of them are `Rows`, as arrays are: they have a length, a shape and a dtype, and ``rows[index]`` reads the rows of an
index array and no others. `gft_jax.pairing.batches` takes them beside arrays, and reads the rows of a step when its
batch is made: inside `gft_jax.pairing.ahead`, in a thread of its own while the device trains.
"""

from gft_jax.data.array_files import open_array
from gft_jax.data.flips import Augmentation, horizontal_flip
from gft_jax.data.grain_source import from_grain
from gft_jax.data.images import ImageFolder, image_files, images
from gft_jax.data.normalisation import Normalisation, fit_normalisation, normalised, restored
from gft_jax.data.pixels import from_images, to_images
from gft_jax.data.rows import Rows, in_memory

__all__ = [
    "Augmentation",
    "ImageFolder",
    "Normalisation",
    "Rows",
    "fit_normalisation",
    "from_grain",
    "from_images",
    "horizontal_flip",
    "image_files",
    "images",
    "in_memory",
    "normalised",
    "open_array",
    "restored",
    "to_images",
]
