"""How rewards are called, checked, and brought in from outside of JAX."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from gft_jax.conditions import check_rows
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
    values = jnp.asarray(reward(x, cond))
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"a reward returns one value a row, shape {x.shape[:1]} for samples of shape {x.shape}; got shape "
            f"{values.shape}"
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"a reward returns floating-point values, got {values.dtype}, which have no gradient: {_REMEDY}"
        )
    return values


def values_alone(reward: Reward, x: Float[Array, "batch *event"], cond: Any = None) -> Float[Array, "batch"]:
    """Reward of each row as a floating-point number, for methods that take no gradient: it may count.

    Raises:
        ValueError: if the reward does not return one real value for each row.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def as_floats(x: Array, cond: Any = None, /) -> Array:
        values = jnp.asarray(reward(x, cond))
        counts = jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == jnp.bool_
        return values.astype(dtype) if counts else values

    return jax.lax.stop_gradient(evaluate(as_floats, x, cond))


def check(reward: Reward, x: Float[Array | np.ndarray, "batch *event"], cond: Any = None) -> None:
    """Refuses a reward that cannot train anything, on samples such as those of the base, before any long work.

    For methods that follow the gradient of the reward.

    Args:
        reward: the reward.
        x: a few samples of the model that is to be trained.
        cond: their conditions, or None.

    Raises:
        ValueError: if samples are not floating-point numbers; the values are not one a row; JAX cannot differentiate
            them; values or gradients are not finite (how many, and in which rows); a value depends on other rows; or
            the gradient is zero in all rows, as of a reward that counts, rounds or takes an argmax.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"samples must be floating-point numbers, as those of a flow are, got {x.dtype}: convert them to the "
            "range that the model has been trained on"
        )
    check_rows("cond", cond, len(x))
    try:
        probe = jax.tree.map(np.asarray, jax.jit(partial(_probe, reward))(x, cond))
    except Exception as error:  # of any kind, since rewards are the user's
        evaluate(reward, x, cond)  # errors of the values themselves come first
        raise ValueError(
            f"the reward has values, but JAX cannot trace and differentiate it ({type(error).__name__}, see above): "
            f"{_REMEDY}"
        ) from error
    num_rows = len(x)
    for name, rows in (("values", probe.values), ("gradients", probe.gradient)):
        bad = np.flatnonzero(~np.isfinite(rows.reshape(num_rows, -1)).all(axis=1))
        if len(bad):
            raise ValueError(
                f"the reward's {name} are not finite in {len(bad)} of {num_rows} rows (the first: "
                f"{bad[:5].tolist()}): bound the reward, e.g. by a clip or a logarithm of values above zero"
            )
    # Batched and single matrix products may differ by rounding.
    tolerance = {"rtol": 1e-2, "atol": 1e-3 * (1 + np.abs(probe.values).max())}
    if probe.by_others.any() or not np.isclose(probe.alone, probe.values[0], **tolerance):
        raise ValueError(
            f"the reward of a row depends on the other rows: {probe.values[0]} among {num_rows} and {probe.alone} "
            f"alone, derivative by the others up to {np.abs(probe.by_others).max(initial=0)}. Give a reward of each "
            "row by itself, without normalisation over the batch"
        )
    if not probe.gradient.any():
        raise ValueError(f"the gradient of the reward is zero in all {num_rows} rows: {_REMEDY}")


class _Probe(NamedTuple):
    values: Any
    gradient: Any
    alone: Any
    """Value of the first row without the others."""
    by_others: Any
    """Derivative of the first row's value by the other rows: it shows a dependence that is too small for values."""


def _probe(reward: Reward, x: Array, cond: Any) -> _Probe:
    values, pull = jax.vjp(lambda x: evaluate(reward, x, cond), x)
    first = jax.tree.map(lambda leaf: leaf[:1], (x, cond))
    by_others = pull(jnp.zeros_like(values).at[0].set(1))[0][1:]
    return _Probe(values, pull(jnp.ones_like(values))[0], evaluate(reward, *first)[0], by_others)


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
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((x, cond))):
            return values_of(x, cond)
        # Without a callback an error on the host comes as it is, and not wrapped in one of the runtime.
        return jnp.asarray(on_host(x, cond)[0])

    return reward


def _no_gradient(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
