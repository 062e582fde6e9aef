"""What networks read of time and condition: sinusoids, checked labels and checked vectors."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Eight periods in [0, 1]: finer than the drifts of smooth paths need, and slow enough that the derivative
# by time, which average-velocity training takes, is not dominated by one feature.
_LARGEST_ANGULAR_FREQUENCY = 50.0


def sinusoids(t: Float[Array, "batch"], num_features: int) -> Float[Array, "batch {num_features}"]:
    """``cos(w_k t), sin(w_k t)``, the angular frequencies w_k spaced geometrically from 1 to the largest."""
    frequencies = np.geomspace(1.0, _LARGEST_ANGULAR_FREQUENCY, num_features // 2)
    angles = t[:, None] * jnp.asarray(frequencies, t.dtype)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def labels(cond: Any, x: Array, num_classes: int) -> Array:
    """Integer labels ``[batch]``; the null class ``num_classes`` in every row where there is no condition.

    Raises:
        ValueError: for anything but None and integers ``[batch]``.
    """
    if cond is None:
        return jnp.full(x.shape[:1], num_classes)
    if jnp.shape(cond) != x.shape[:1] or not jnp.issubdtype(jnp.result_type(cond), jnp.integer):
        raise ValueError(
            f"With num_classes={num_classes} cond must be integer labels of shape {x.shape[:1]} for x of shape "
            f"{x.shape}; got {jnp.result_type(cond)} of shape {jnp.shape(cond)}."
        )
    return jnp.asarray(cond)


def vectors(cond: Any, x: Array, cond_features: int) -> Array:
    """Float conditions ``[batch, cond_features]`` in the dtype of x.

    Raises:
        ValueError: for anything else, None included.
    """
    expected = (x.shape[0], cond_features)
    if cond is None:
        raise ValueError(
            f"With cond_features={cond_features} cond must be floats of shape {expected}; got None."
        )
    if jnp.shape(cond) != expected or not jnp.issubdtype(jnp.result_type(cond), jnp.floating):
        raise ValueError(
            f"With cond_features={cond_features} cond must be floats of shape {expected} for x of shape {x.shape}; "
            f"got {jnp.result_type(cond)} of shape {jnp.shape(cond)}."
        )
    return jnp.asarray(cond, x.dtype)
