"""How rewards are called, checked, and brought in from outside of JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gft_jax.types import Reward

_REMEDY = (
    "a reward without a useful gradient can be raised by objectives.reward_weighted, which needs its values alone, or "
    "be given a gradient of your own by rewards.from_host"
)


def value_and_gradient(
    reward: Reward, x: Float[Array, "batch *event"], cond: Any = None
) -> tuple[Float[Array, "batch"], Float[Array, "batch *event"]]:
    """Reward of each row, and its gradient by the row; the one place where methods call a reward with its gradient.

    Raises:
        ValueError: if the reward does not return one floating-point value for each row.
    """
    values, pull = jax.vjp(lambda x: evaluate(reward, x, cond), x)
    return values, pull(jnp.ones_like(values))[0]


def evaluate(reward: Reward, x: Float[Array, "batch *event"], cond: Any = None) -> Float[Array, "batch"]:
    """Reward of each row.

    Raises:
        ValueError: if the reward does not return one floating-point value for each row.
    """
    values = reward(x, cond)
    if jnp.shape(values) != x.shape[:1]:
        raise ValueError(
            f"a reward returns one value a row, shape {x.shape[:1]} for samples of shape {x.shape}; got shape "
            f"{jnp.shape(values)}"
        )
    if not jnp.issubdtype(jnp.result_type(values), jnp.floating):
        raise ValueError(
            f"a reward returns floating-point values, got {jnp.result_type(values)}, which have no gradient: "
            f"{_REMEDY}"
        )
    return values


def check(reward: Reward, x: Float[Array | np.ndarray, "batch *event"], cond: Any = None) -> None:
    """Refuses a reward that cannot train anything, on samples such as those of the base, before any long work.

    Args:
        reward: the reward.
        x: a few samples of the model that is to be trained.
        cond: their conditions, or None.

    Raises:
        ValueError: if the values are not one a row; values or gradients are not finite (how many, and in which rows);
            the gradient is zero in all rows, as of a reward that counts, rounds or takes an argmax; or a value depends
            on other rows.
    """
    x = jnp.asarray(x)
    values, gradient = (np.asarray(each) for each in value_and_gradient(reward, x, cond))
    for name, rows in (("values", values), ("gradients", gradient)):
        bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        if len(bad):
            raise ValueError(
                f"the reward's {name} are not finite in {len(bad)} of {len(rows)} rows (the first: "
                f"{bad[:5].tolist()}): bound the reward, e.g. by a clip or a logarithm of values above zero"
            )
    if not gradient.any():
        raise ValueError(f"the gradient of the reward is zero in all {len(values)} rows: {_REMEDY}")
    if len(x) > 1:
        first = jax.tree.map(lambda leaf: leaf[:1], (x, cond))
        alone = float(np.asarray(evaluate(reward, *first))[0])
        # Batched and single matrix products may differ by rounding.
        if not np.isclose(alone, values[0], rtol=1e-2, atol=1e-3 * (1 + np.abs(values).max())):
            raise ValueError(
                f"the reward of a row depends on the other rows: {values[0]} among {len(values)} and {alone} alone. "
                "Give a reward of each row by itself, without normalisation over the batch"
            )


def from_host(value_and_gradient: Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]]) -> Reward:
    """A reward that is computed outside of JAX, with a gradient that comes with it.

    For scores of other frameworks, programs or simulators. Under jit it is a callback to the host, called once for the
    value and the gradient together; rows of several devices come in calls of their own.

    Args:
        value_and_gradient: ``(x, cond)`` -> values ``[batch]`` and their gradient ``[batch, *event]``, of NumPy arrays
            (cond: a pytree of them, or None). A value that has no gradient may come with an estimate of one.

    Returns:
        A reward; from the call, the callback's error if it returns other shapes.
    """

    def call(x: Array, cond: Any) -> tuple[Array, Array]:
        dtype = jnp.promote_types(x.dtype, jnp.float32)

        def on_host(x: Any, cond: Any) -> tuple[np.ndarray, np.ndarray]:
            rows = np.asarray(x)
            found = value_and_gradient(rows, jax.tree.map(np.asarray, cond))
            values, gradient = (np.asarray(each, dtype) for each in found)
            if values.shape != rows.shape[:1] or gradient.shape != rows.shape:
                raise ValueError(
                    f"a reward on the host returns values {rows.shape[:1]} and a gradient {rows.shape}, got "
                    f"{values.shape} and {gradient.shape}"
                )
            return values, gradient

        shapes = jax.ShapeDtypeStruct(x.shape[:1], dtype), jax.ShapeDtypeStruct(x.shape, dtype)
        return jax.pure_callback(on_host, shapes, x, cond, vmap_method="sequential")

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
        return values_of(x, cond)

    return reward


def _no_gradient(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
