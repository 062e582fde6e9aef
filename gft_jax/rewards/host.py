"""Rewards that are computed outside of JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from gft_jax.host_calls import call_on_host
from gft_jax.types import Reward


def from_host(value_and_gradient: Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]]) -> Reward:
    """A reward that is computed outside of JAX, with a gradient that comes with it.

    For scores of other frameworks, programs or simulators. Under jit it is a callback to the host, called once for the
    value and the gradient together; rows of several devices come in calls of their own. Only reverse-mode derivatives
    are there, of first order.

    Args:
        value_and_gradient: ``(x, cond)`` -> values ``[batch]`` and their gradient ``[batch, *event]``, of NumPy arrays
            (x in float32 at least, writable; cond: a pytree of them, or None). A value that has no gradient may come
            with an estimate of one.

    Returns:
        A reward. What goes wrong on the host, other shapes included, is raised as it is when the reward is called by
        itself, as in `check`, and within a JaxRuntimeError under jit or with a gradient.
    """

    def on_host(x: Any, cond: Any) -> tuple[np.ndarray, np.ndarray]:
        # A copy that may be written to, in a type that other frameworks know.
        rows = np.array(x, jnp.promote_types(x.dtype, jnp.float32))
        found = value_and_gradient(rows, jax.tree.map(np.asarray, cond))
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(
                f"a reward on the host returns a pair of values and gradient, got {type(found).__name__}"
            )
        values, gradient = (np.asarray(each, rows.dtype) for each in found)
        if values.shape != rows.shape[:1] or gradient.shape != rows.shape:
            raise ValueError(
                f"a reward on the host returns values {rows.shape[:1]} and a gradient {rows.shape}, got "
                f"{values.shape} and {gradient.shape}"
            )
        return values, gradient

    def call(x: Array, cond: Any) -> tuple[Array, Array]:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        shapes = jax.ShapeDtypeStruct(x.shape[:1], dtype), jax.ShapeDtypeStruct(x.shape, dtype)
        return call_on_host(on_host, shapes, x, cond)

    @jax.custom_vjp
    def values_of(x: Array, cond: Any) -> Array:
        return call(x, cond)[0]

    def forward(x: Array, cond: Any) -> tuple[Array, tuple[Array, Array, Any]]:
        values, gradient = call(x, cond)
        return values, (gradient, x, cond)

    def backward(kept: tuple[Array, Array, Any], cotangent: Array) -> tuple[Array, Any]:
        gradient, x, cond = kept
        scaled = gradient * cotangent.reshape(cotangent.shape + (1,) * (gradient.ndim - 1))
        return scaled.astype(x.dtype), jax.tree.map(_no_gradient, cond)

    values_of.defvjp(forward, backward)

    def reward(x: Array, cond: Any = None, /) -> Array:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((x, cond))):
            return values_of(x, cond)
        # Without a callback an error on the host comes as it is, and not wrapped in one of the runtime.
        return jnp.asarray(on_host(x, cond)[0])

    return reward


def _no_gradient(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
