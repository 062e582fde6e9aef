"""How much of the pretrained drift is left.

How much of the old *data* is left needs no metric of its own: it is any distance, such as `w2`, between new samples
and held-out old data.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from gft_jax.drifts import evaluate
from gft_jax.types import Drift, Params


def velocity_distance(
    drift: Drift,
    params: Params,
    velocity: Float[Array, "points *event"],
    t: Float[Array, "points"],
    x: Float[Array, "points *event"],
    cond: Any = None,
) -> Float[Array, ""]:
    """Root of the mean squared distance between a drift and given velocities, ``sqrt(mean |v(t, x) - u|^2)``.

    With points of the base model's own sampling paths and the base's velocities there, it measures how much of the
    base is retained: zero for the base itself. Squares are summed over the event and averaged over the points.
    Bias: over points drawn at random the mean square has none, and its root is low by O(1 / points).

    Args:
        drift: the velocity field.
        params: its parameters.
        velocity: what it is compared with, such as the base drift at the same points.
        t: flow times.
        x: points.
        cond: conditions of the points.

    Raises:
        ValueError: if velocities and points differ in shape, or there are none.
    """
    if velocity.shape != x.shape:
        raise ValueError(f"velocities and points must have one shape: {velocity.shape} and {x.shape}")
    if not len(x):
        raise ValueError(f"a mean needs one point or more, got x of shape {x.shape}")
    difference = (evaluate(drift, params, t, x, cond) - velocity).reshape(x.shape[0], -1)
    return jnp.sqrt(jnp.mean(jnp.sum(difference**2, axis=-1)))
