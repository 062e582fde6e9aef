"""How rewards are called and checked."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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

    The gradient of a row whose value is not finite is nan, so that a training step that follows it changes nothing
    and says so, also where the reward has a finite gradient there.

    Raises:
        ValueError: if the reward does not return one floating-point value for each row, or JAX cannot trace or
            differentiate it.
    """
    try:
        values, pull = jax.vjp(lambda x: evaluate(reward, x, cond), x)
        gradient = pull(jnp.ones_like(values))[0]
    except Exception as error:  # of any kind, since rewards are the user's
        evaluate(reward, x, cond)  # errors of the values themselves come first
        raise _not_differentiable(error) from error
    is_finite = jnp.isfinite(values).reshape(values.shape + (1,) * (gradient.ndim - 1))
    return values, jnp.where(is_finite, gradient, jnp.nan)


def evaluate(reward: Reward, x: Float[Array, "batch *event"], cond: Any = None) -> Float[Array, "batch"]:
    """Reward of each row.

    Raises:
        ValueError: if the reward does not return one floating-point value for each row, or JAX cannot trace it.
    """
    try:
        values = _called(reward, x, cond)
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            f"JAX cannot trace the reward ({type(error).__name__}, see above), as where it hands its samples to NumPy "
            "or branches on their values: write it in jax.numpy, or bring it in by rewards.from_host, with a gradient "
            "of your own (zeros do for objectives.reward_weighted, which takes none)"
        ) from error
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


def _called(reward: Reward, x: Array, cond: Any) -> Array:
    """What the reward returns.

    Raises:
        ValueError: if it does not take samples and conditions.
    """
    try:
        inspect.signature(reward).bind(x, cond)
    except TypeError as error:
        raise ValueError(
            f"a reward is called as reward(x, cond), which this one does not allow ({error}): write it with a second "
            "argument, reward(x, cond=None)"
        ) from error
    except ValueError:  # some callables that are not written in Python do not tell their arguments
        pass
    return jnp.asarray(reward(x, cond))


def values_alone(reward: Reward, x: Float[Array, "batch *event"], cond: Any = None) -> Float[Array, "batch"]:
    """Reward of each row as a floating-point number, for methods that take no gradient: it may count.

    Raises:
        ValueError: if the reward does not return one real value for each row.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def as_floats(x: Array, cond: Any = None, /) -> Array:
        values = _called(reward, x, cond)
        counts = jnp.issubdtype(values.dtype, jnp.integer) or values.dtype == jnp.bool_
        return values.astype(dtype) if counts else values

    return jax.lax.stop_gradient(evaluate(as_floats, x, cond))


def check(
    reward: Reward,
    x: Float[Array | np.ndarray, "batch *event"],
    cond: Any = None,
    *,
    needs_gradient: bool = True,
) -> None:
    """Refuses a reward that cannot train anything, on samples such as those of the base, before any long work.

    Args:
        reward: the reward.
        x: a few samples of the model that is to be trained.
        cond: their conditions, or None.
        needs_gradient: False for `gft_jax.objectives.reward_weighted`, which takes the values alone: they may then
            count, and -inf, the weight zero, is allowed in some rows.

    Raises:
        ValueError: if samples are not floating-point numbers, or there are none; the values are not one a row; JAX
            cannot trace or differentiate them; values or gradients are not finite (how many, and in which rows); a
            value depends on other rows (tried with the first and the last one); or the gradient is zero in all rows, as
            of a reward that counts, rounds or takes an argmax (without a gradient: the value is the same in all of
            two or more rows).
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"samples must be floating-point numbers, as those of a flow are, got {x.dtype}: convert them to the "
            "range that the model has been trained on"
        )
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"samples must be [batch, *event] with one row or more, got shape {x.shape}")
    check_rows("cond", cond, len(x))
    values_of = evaluate if needs_gradient else values_alone
    try:
        probe = jax.tree.map(np.asarray, jax.jit(partial(_probe, values_of, reward))(x, cond))
    except Exception as error:  # of any kind, since rewards are the user's
        values_of(reward, x, cond)  # errors of the values themselves come first
        raise _not_differentiable(error) from error
    num_rows, values = len(x), probe.values
    allowed = np.isfinite(values) if needs_gradient else np.isfinite(values) | np.isneginf(values)
    for name, good in (("values", allowed), ("gradients", np.isfinite(probe.gradient).all(axis=1))):
        bad = np.flatnonzero(~good)
        if len(bad):
            raise ValueError(
                f"the reward's {name} are not finite in {len(bad)} of {num_rows} rows (the first: "
                f"{bad[:5].tolist()}): bound the reward, e.g. by a clip or a logarithm of values above zero"
            )
    # Batched and single matrix products may differ by rounding.
    atol = 1e-3 * (1 + np.abs(values[np.isfinite(values)]).max(initial=0))
    for row, alone, by_others in zip((0, -1), probe.alone, probe.by_others, strict=True):
        if by_others.any() or not np.isclose(alone, values[row], rtol=1e-2, atol=atol):
            raise ValueError(
                f"the reward of a row depends on the other rows: {values[row]} among {num_rows} and {alone} alone, "
                f"derivative by the others up to {np.abs(by_others).max(initial=0)}. Give a reward of each row by "
                "itself, without normalisation over the batch"
            )
    if needs_gradient and not probe.gradient.any():
        raise ValueError(f"the gradient of the reward is zero in all {num_rows} rows: {_REMEDY}")
    if not needs_gradient and (np.isneginf(values).all() or (num_rows > 1 and np.ptp(values) == 0)):
        raise ValueError(
            f"the reward is {values[0]} in all {num_rows} rows, so that none is preferred: give a reward that tells "
            "samples apart, or more samples, if it does so rarely"
        )


def _not_differentiable(error: Exception) -> ValueError:
    cause = error.__cause__ if isinstance(error.__cause__, jax.errors.JAXTypeError) else error
    return ValueError(
        f"the reward has values, but JAX cannot trace and differentiate it ({type(cause).__name__}, see above): "
        f"{_REMEDY}"
    )


class _Probe(NamedTuple):
    values: Any
    gradient: Any
    """``[rows, entries]``; without entries where none is asked for, as below."""
    alone: Any
    """Values of the first and the last row, each without the others."""
    by_others: Any
    """Derivatives of these rows' values by the other rows: they show a dependence that is too small for values."""


def _probe(values_of: Callable[..., Array], reward: Reward, x: Array, cond: Any) -> _Probe:
    num_rows = len(x)
    first, last = (
        jax.tree.map(lambda leaf, row=row: leaf[row], (x, cond))
        for row in (slice(1), slice(num_rows - 1, None))
    )
    alone = [values_of(reward, *row)[0] for row in (first, last)]
    if values_of is values_alone:
        nothing = jnp.zeros((num_rows, 0))
        return _Probe(values_alone(reward, x, cond), nothing, alone, [nothing, nothing])
    values, pull = jax.vjp(lambda x: evaluate(reward, x, cond), x)
    first, last = (pull(jnp.zeros_like(values).at[row].set(1))[0] for row in (0, -1))
    gradient = pull(jnp.ones_like(values))[0].reshape(num_rows, -1)
    return _Probe(values, gradient, alone, [first[1:], last[:-1]])
