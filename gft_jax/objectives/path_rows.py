"""Points on conditional paths: what every regression on a path starts from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gft_jax.objectives.time_sampling import draw_times
from gft_jax.paths import Path
from gft_jax.types import Batch, TimeSampler, Weighting


class PathRows(NamedTuple):
    """Points on conditional paths, ready for a regression; all leaves ``[rows, ...]``."""

    t: Array
    """Flow times ``[rows]``."""
    x: Array
    """Points ``[rows, *event]``."""
    velocity: Array
    """Conditional velocities ``[rows, *event]``: the regression target."""
    factor: Array
    """Weight by time k(t) of the squared error ``[rows]``."""
    weight: Array
    """Weights of the rows ``[rows]``."""
    cond: Any
    """Conditions of the data end, or None."""
    score: Array | None = None
    """Conditional scores ``[rows, *event]``; None on a path without noise of its own."""


def squared_norm(x: Float[Array, "rows *event"]) -> Float[Array, "rows"]:
    """Sum of squares over the event axes."""
    return jnp.sum(jnp.square(x).reshape(x.shape[0], -1), axis=-1)


def row_weights(batch: Batch, dtype: Any) -> Float[Array, "rows"]:
    """Weights of the rows, one each by default.

    Raises:
        ValueError: if the batch has weights that are not one a row.
    """
    if batch.weight is None:
        return jnp.ones(batch.key.shape, dtype)
    if batch.weight.shape != batch.key.shape:
        raise ValueError(
            f"the batch's weight must have one value a row, shape {batch.key.shape}, got shape {batch.weight.shape}"
        )
    return batch.weight.astype(dtype)


def path_rows(path: Path, time_sampler: TimeSampler, weighting: Weighting, batch: Batch) -> PathRows:
    """Draws a time and a point on the conditional path of every row, from the row's own key, in float32 at least.

    Raises:
        ValueError: if the batch has no data end, the two ends differ in shape, or weights are not one a row.
    """
    return path_rows_at(path, row_times(time_sampler, batch), weighting, batch)


def row_times(time_sampler: TimeSampler, batch: Batch) -> Float[Array, "rows"]:
    """A time for every row, from the row's own key.

    Raises:
        ValueError: if the batch has no data end, or the two ends differ in shape.
    """
    if batch.x1 is None:
        raise ValueError(
            "flow matching regresses on paths to data, and the batch has x1=None: give data rows"
        )
    if batch.x0.shape != batch.x1.shape:
        raise ValueError(
            f"the two ends of a path must have one shape: x0 has {batch.x0.shape}, x1 has {batch.x1.shape}"
        )
    # Half precision cannot tell times near the ends apart, nor add up a thousand rows.
    dtype = jnp.promote_types(batch.x1.dtype, jnp.float32)
    return draw_times(time_sampler, _keys(batch)[0], dtype)


def displacement_moments(
    displacement: Float[Array, "rows *event"], toward: Float[Array, "rows *event"]
) -> dict[str, Float[Array, "rows"]]:
    """The stats of which the effective target weight is made, of each row: ``|r|^2`` and ``<r, d>``.

    Args:
        displacement: r, the student's velocity less the base's.
        toward: d, the target velocity less the base's.
    """
    return {
        "displacement_squared": squared_norm(displacement),
        "displacement_along_target": jnp.sum(
            (displacement * toward).reshape(displacement.shape[0], -1), axis=-1
        ),
    }


def path_rows_at(path: Path, t: Float[Array, "rows"], weighting: Weighting, batch: Batch) -> PathRows:
    """Points on the conditional paths at times that were drawn already, of a batch that `row_times` has checked.

    Raises:
        ValueError: if weights are not one a row.
    """
    x0, x1 = (jnp.asarray(end, t.dtype) for end in (batch.x0, batch.x1))
    point = path.sample(_keys(batch)[1], t, x0, x1)
    factor = weighting(t)
    if factor.shape != t.shape:
        raise ValueError(f"weighting(t) must have one value a row, shape {t.shape}, got shape {factor.shape}")
    weight = row_weights(batch, t.dtype)
    return PathRows(t, point.x, point.velocity, factor, weight, batch.cond, point.score)


def _keys(batch: Batch) -> Key[Array, "2 rows"]:
    """A key for the time of every row, and one for its noise."""
    return jnp.moveaxis(jax.vmap(jax.random.split)(batch.key), 1, 0)
