"""Images as they are stored, 0 to 255, and as flows take them, -1 to 1."""

from typing import Any

import numpy as np

from gft_jax.data.rows import Mapped, Rows

_VALUES = (np.arange(256) / 127.5 - 1).astype(np.float32)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """``pixel / 127.5 - 1`` of bytes: 0 becomes -1, 255 becomes 1."""
    return _VALUES[pixels]


def from_images(rows: Rows) -> Rows:
    """Images stored as bytes, as float32 rows in [-1, 1]: ``pixel / 127.5 - 1``, computed when they are read.

    Args:
        rows: uint8, ``[num, *event]``, such as a memory-mapped file of images ``[num, height, width, channels]``.

    Raises:
        ValueError: for another dtype.
    """
    if rows.dtype != np.uint8:
        raise ValueError(
            f"from_images takes bytes from 0 to 255, got dtype {rows.dtype}; floating-point rows are taken as they are"
        )
    return Mapped(rows, scaled, np.float32, finite=True)


def to_images(x: Any) -> np.ndarray:
    """Samples in [-1, 1] as bytes: the nearest integer to ``127.5 (x + 1)``, values beyond the ends cut off.

    The inverse of `from_images` and of the scaling of `images`: bytes come back as they were.

    Args:
        x: floating-point values of any shape.

    Returns:
        uint8, in the shape of x, on the host.

    Raises:
        ValueError: for values that are not floating-point, or not numbers (NaN), which have no colour.
    """
    values = np.asarray(x)
    if values.dtype.kind in "iub":
        raise ValueError(f"to_images takes floating-point samples in [-1, 1], got dtype {values.dtype}")
    values = values.astype(np.float64)
    num_nan = int(np.isnan(values).sum())
    if num_nan:
        raise ValueError(f"{num_nan} of {values.size} values are NaN, which no pixel can show")
    return np.rint(127.5 * (np.clip(values, -1, 1) + 1)).astype(np.uint8)
