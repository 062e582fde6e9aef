"""What the samplers are called with: checked before anything is compiled."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def checked_states(name: str, states: Any) -> Any:
    """States ``[batch, *event]`` as an array of their own dtype; a nested list becomes one of NumPy.

    Raises:
        ValueError: for states that are not real numbers, without an axis of the batch, or empty.
    """
    array = states if isinstance(states, jax.Array | np.ndarray) else np.asarray(states)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}.")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} must be [batch, *event] and not empty, got shape {array.shape}.")
    return array


def checked_count(name: str, count: Any) -> int:
    """A count as a Python integer.

    Raises:
        ValueError: for a count that is no integer (of Python or NumPy), or below one.
    """
    if not isinstance(count, numbers.Integral):
        raise ValueError(f"{name} must be an integer, got {count!r}.")
    if count < 1:
        raise ValueError(f"{name} must be >= 1, got {count}.")
    return int(count)


def check_known(**values: Any) -> None:
    """Refuses values that jit, grad or vmap trace: the times between which a sampler goes are part of its program.

    Raises:
        ValueError: for a traced value, by its name.
    """
    for name, value in values.items():
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"{name} must be known at trace time, but jit, grad or vmap traces it: give numbers or a NumPy array, "
                "from outside of the traced function or as a static argument."
            )


def as_data(tree: Any) -> Any:
    """A pytree whose Python numbers are arrays: a jit would take them as static, and compile again for each value."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, bool | int | float) else leaf, tree
    )
