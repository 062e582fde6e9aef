"""Class labels as the condition of a network."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def labels_of(cond: Any, x: Array, num_classes: int) -> Array:
    """Integer labels ``[batch]``; the null class ``num_classes`` in every row where there is no condition.

    Raises:
        ValueError: for a condition that is not an integer label for each row of x.
    """
    if cond is None:
        return jnp.full(x.shape[:1], num_classes)
    if jnp.shape(cond) != x.shape[:1] or not jnp.issubdtype(jnp.result_type(cond), jnp.integer):
        raise ValueError(
            f"With num_classes={num_classes} cond must be integer labels of shape {x.shape[:1]} for x of shape "
            f"{x.shape}; got {jnp.result_type(cond)} of shape {jnp.shape(cond)}."
        )
    return jnp.asarray(cond)
