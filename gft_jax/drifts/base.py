"""How a drift is called."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gft_jax.types import Drift


def evaluate(
    drift: Drift, params: Any, t: ArrayLike, x: Float[Array, "batch *event"], cond: Any = None
) -> Float[Array, "batch *event"]:
    """Velocity ``[batch, *event]`` of a drift: the one place where objectives and samplers call a drift.

    The drift receives t as ``[batch]`` in the precision of x, but at least float32 (in bfloat16 a hundred steps
    would not be equal). The velocity has the wider of the dtypes of x and of the drift's output:
    a bfloat16 network on float32 events gives float32, a float32 network on bfloat16 events too.

    Args:
        drift: the velocity field.
        params: its parameters.
        t: flow time in [0, 1], a scalar or ``[batch]``.
        x: positions ``[batch, *event]``.
        cond: condition of the rows, a pytree of ``[batch, ...]``, or None.

    Raises:
        ValueError: if t is neither a scalar nor ``[batch]``, or the output of the drift is not of the shape of x.
    """
    times = jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32))
    if times.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"t must be a scalar or have shape {x.shape[:1]}, one time for each row of x of shape {x.shape}; "
            f"got shape {times.shape}."
        )
    velocity = drift(params, jnp.broadcast_to(times, x.shape[:1]), x, cond)
    if jnp.shape(velocity) != x.shape:
        raise ValueError(
            f"The drift returned shape {jnp.shape(velocity)} for x of shape {x.shape}; a velocity has the shape "
            "of x."
        )
    return jnp.asarray(velocity, jnp.promote_types(x.dtype, velocity.dtype))
