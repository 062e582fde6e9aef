"""Features of flow time."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Eight periods in [0, 1]: finer than the drifts of smooth paths need, and slow enough that the derivative
# by time, which average-velocity training takes, is not dominated by one feature.
_LARGEST_ANGULAR_FREQUENCY = 50.0


def flow_time_frequencies(num_features: int) -> np.ndarray:
    """Angular frequencies for `sinusoids` of ``num_features``, even: spaced geometrically from 1 to the largest."""
    return np.geomspace(1.0, _LARGEST_ANGULAR_FREQUENCY, num_features // 2)


def sinusoids(t: Float[Array, "batch"], frequencies: np.ndarray) -> Float[Array, "batch features"]:
    """``cos(w_k t), sin(w_k t)`` of angular frequencies w ``[features / 2]``."""
    angles = t[:, None] * jnp.asarray(frequencies, t.dtype)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
