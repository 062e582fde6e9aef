"""Features of flow time."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def check_max_frequency(value: float) -> None:
    """Refuses a largest angular frequency that is none.

    Raises:
        ValueError: if it is not a finite number >= 1.
    """
    if not 1 <= value < np.inf:
        raise ValueError(f"max_frequency must be a finite number >= 1, got {value}.")


def flow_time_frequencies(num_features: int, max_frequency: float) -> np.ndarray:
    """Angular frequencies for `sinusoids` of ``num_features``, even: spaced geometrically from 1 to the largest."""
    return np.geomspace(1.0, max_frequency, num_features // 2)


def sinusoids(t: Float[Array, "batch"], frequencies: np.ndarray) -> Float[Array, "batch features"]:
    """``cos(w_k t), sin(w_k t)`` of angular frequencies w ``[features / 2]``."""
    angles = t[:, None] * jnp.asarray(frequencies, t.dtype)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
