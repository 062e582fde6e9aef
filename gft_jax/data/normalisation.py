"""Rows brought to mean 0 and variance 1 in each channel, and samples brought back."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gft_jax.data.rows import Mapped, Rows, chunks, is_finite


class Normalisation(NamedTuple):
    """An affine map of events, ``(x - mean) / scale``; a pytree of arrays, to be saved beside a run.

    ``gft.checkpoints.save_params`` keeps it, and `restored` brings samples back to the units of the data.
    """

    mean: Any
    """Broadcasts against an event: ``[1, 1, channels]`` for images ``[height, width, channels]``."""
    scale: Any
    """Likewise; positive."""


def fit_normalisation(rows: Rows, *, channel_axis: int | None = -1) -> Normalisation:
    """Mean and standard deviation of each channel, over all rows and all other axes of an event.

    Rows are read once, a chunk at a time, and sums of chunks are merged in float64, by deviations from the chunks' own
    means. The standard deviation is that of the rows themselves (divided by their number, not by one less).

    Args:
        rows: floating-point dataset ``[num, *event]``. Fit it to the training data alone, and apply it to all.
        channel_axis: which axis of an event is the channels: the last one; for vectors these are the coordinates.
            None for one mean and one scale of all values.

    Returns:
        float32 arrays, of length 1 along all axes of an event but the channels.

    Raises:
        ValueError: for rows that are empty or not floating-point, an axis that an event does not have, values that are
            not finite, or a channel that is the same everywhere, which has no scale.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    1979 (the merging of sums).
    """
    rank = len(rows.shape) - 1
    if rank < 0 or len(rows) == 0 or not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(
            f"a normalisation is fitted to floating-point rows [num, *event] with num >= 1, got shape "
            f"{tuple(rows.shape)}, dtype {rows.dtype}"
        )
    if channel_axis is not None and not -rank <= channel_axis < rank:
        raise ValueError(
            f"channel_axis={channel_axis} is no axis of an event of shape {tuple(rows.shape[1:])}; give None for one "
            "mean and one scale of all values"
        )
    kept = None if channel_axis is None else 1 + channel_axis % rank
    axes = tuple(axis for axis in range(rank + 1) if axis != kept)
    count, mean, deviations = 0, np.zeros(()), np.zeros(())
    for _, chunk in chunks(rows, "fitting the normalisation"):
        values = chunk.astype(np.float64)
        size = values.size // (1 if kept is None else values.shape[kept])
        with np.errstate(invalid="ignore"):  # of infinities, which are refused below
            mean_here = values.mean(axes, keepdims=True)
            shift = mean_here - mean
            deviations = deviations + np.sum((values - mean_here) ** 2, axes, keepdims=True)
            deviations = deviations + shift**2 * (count * size / (count + size))
            mean = mean + shift * (size / (count + size))
        count += size
    if not np.isfinite(deviations).all():
        raise ValueError("rows hold values that are not finite (NaN or infinity): remove or repair them")
    # What rounding alone leaves of a constant counts as none.
    scale = np.sqrt(deviations / count)
    constant = np.flatnonzero(scale <= 1e-12 * np.abs(mean))
    if len(constant):
        raise ValueError(
            f"{len(constant)} of {scale.size} channels are the same in all rows (the first: {constant[:5].tolist()}), "
            "and have no scale: leave them out, give channel_axis=None, or make a Normalisation whose scale is 1 there"
        )
    return Normalisation(*(statistic[0].astype(np.float32) for statistic in (mean, scale)))


def normalised(rows: Rows, normalisation: Normalisation) -> Rows:
    """Rows ``(x - mean) / scale`` in the dtype of the rows, computed when they are read.

    Args:
        rows: floating-point dataset ``[num, *event]``.
        normalisation: of `fit_normalisation`, or your own: arrays that broadcast against an event.

    Raises:
        ValueError: for rows that are not floating-point, a mean or scale that is not finite or would change the shape
            of an event, or a scale that is not positive.
    """
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(f"rows to be normalised must be floating-point, got dtype {rows.dtype}")
    mean, scale = checked(normalisation, tuple(rows.shape[1:]), rows.dtype)
    return Mapped(rows, lambda x: (x - mean) / scale, rows.dtype, is_finite(rows))


def checked(
    normalisation: Normalisation, event: tuple[int, ...], dtype: DTypeLike
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale as arrays of a dtype.

    Args:
        normalisation: mean and scale.
        event: shape of an event.
        dtype: a floating-point one.

    Raises:
        ValueError: for a mean or scale that is not finite or would change the shape of an event, or a scale that is not
            positive.
    """
    mean, scale = (np.asarray(value, dtype) for value in normalisation)
    for name, value in (("mean", mean), ("scale", scale)):
        try:
            fits = np.broadcast_shapes(value.shape, event) == event
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} of shape {value.shape} does not broadcast against an event of shape {event}"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{name} of a normalisation must be finite, got {value}")
    if not (scale > 0).all():
        raise ValueError(f"scale of a normalisation must be positive, got {scale}")
    return mean, scale


def restored(x: Any, normalisation: Normalisation) -> Any:
    """Samples in the units of the data, ``x scale + mean``: the inverse of `normalised`.

    Args:
        x: ``[batch, *event]``, a NumPy or JAX array; also under jit.
        normalisation: the one that the training data were normalised by.

    Returns:
        Like x, in its dtype.
    """
    return (x * normalisation.scale + normalisation.mean).astype(x.dtype)
