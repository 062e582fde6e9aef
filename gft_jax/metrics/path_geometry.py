"""Geometry of sampling trajectories."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def path_length(
    trajectory: Float[Array | np.ndarray, "points batch *event"],
) -> Float[Array, "batch"]:
    """Length of each sampling path, ``sum_k |x_{k+1} - x_k|``, the Euclidean norm taken over the whole event.

    In the unit of the data; its mean over samples is the mean path length. Bias: the length of the polygon, which
    is below that of the smooth path by a relative ``O(num_steps^-2)``; compare at equal numbers of steps. A path
    that leaves the finite numbers has a length that is not finite: count these before averaging.

    Args:
        trajectory: states at all times, the start included, ``[num_steps + 1, batch, *event]``, at least two.

    Raises:
        ValueError: for fewer than two states.
    """
    if trajectory.shape[0] < 2:
        raise ValueError(
            "trajectory must be [num_steps + 1, batch, *event] with at least two states, start included, "
            f"got shape {trajectory.shape}"
        )
    increments = jnp.diff(jnp.asarray(trajectory), axis=0)
    over_event = tuple(range(2, increments.ndim))
    return jnp.sum(jnp.sqrt(jnp.sum(increments**2, axis=over_event)), axis=0)
