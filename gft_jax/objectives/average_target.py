"""What the target of an average velocity is made of: two times, guidance, and the derivative along the flow."""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gft_jax.conditions import null_like
from gft_jax.drifts import evaluate, evaluate_average, instantaneous
from gft_jax.drifts.guidance import ALWAYS, checked_interval
from gft_jax.networks.convolution import forward_mode
from gft_jax.objectives.path_rows import row_times
from gft_jax.objectives.time_sampling import draw_times
from gft_jax.types import Batch, TimeSampler, TwoTimeDrift

_LONGEST_PERIOD = 64


class TargetGuidance(NamedTuple):
    """Classifier-free guidance folded into the target of `mean_flow`: sampling then takes one evaluation a step."""

    scale: float
    """s of the guided field ``v(null) + s (v(cond) - v(null))`` that is learned: 1 is the conditional velocity, above 1
    is guidance."""
    null_cond: Any
    """The null condition, like one row of cond. Rows of the batch that hold it (``cond_dropout`` of
    `gft_jax.pairing.batches`) learn the unguided field, of which the guided one is made."""
    kappa: float = 0.0
    """Share in [0, 1) of the student's own conditional velocity in the target: lowers the variance of the term
    ``s (1 - kappa) v``, for one more evaluation."""
    interval: tuple[float, float] = ALWAYS
    """Flow times (both ends included) with guidance; at others the field is the conditional one."""


def checked_guidance(guidance: TargetGuidance, share: Fraction) -> TargetGuidance:
    """Guidance with Python's numbers, which leave dtypes as they are.

    Raises:
        ValueError: for a scale that is not finite, a kappa outside [0, 1), no null condition, or a wrong interval;
            where no row has s = t (``share`` is 1).
    """
    if share == 1:
        raise ValueError(
            "guidance in the target is made of the student's velocities at s = t, and with same_time=0 no row trains "
            "them: give a larger fraction, such as 0.5"
        )
    scale, kappa = float(guidance.scale), float(guidance.kappa)
    if not math.isfinite(scale):
        raise ValueError(f"the scale of guidance must be finite, got {scale}")
    if not 0 <= kappa < 1:
        raise ValueError(f"kappa is a share in [0, 1), got {kappa}")
    if guidance.null_cond is None:
        raise ValueError(
            "guidance in the target needs null_cond, by which rows without a condition are known: give that of the "
            "stream, such as gft_jax.networks.null_condition(num_classes)"
        )
    return TargetGuidance(scale, guidance.null_cond, kappa, checked_interval(guidance.interval))


def interval_share(same_time: float) -> Fraction:
    """The share of rows with s > t as a fraction: of ``denominator`` successive rows the first ``numerator`` have one.

    Raises:
        ValueError: for a fraction outside [0, 1], or of no small denominator.
    """
    same_time = float(same_time)
    if not 0 <= same_time <= 1:
        raise ValueError(f"same_time is the fraction of rows with s = t, in [0, 1], got {same_time}")
    share = 1 - Fraction(same_time).limit_denominator(_LONGEST_PERIOD)
    if abs(float(share) + same_time - 1) > 1e-6:
        raise ValueError(
            f"same_time must be a fraction of a denominator of at most {_LONGEST_PERIOD}, such as 0.75 or 2 / 3, got "
            f"{same_time}"
        )
    return share


def has_interval(share: Fraction, num_rows: int) -> Bool[np.ndarray, "rows"]:
    """Which rows have s > t, by their places.

    Raises:
        ValueError: if the rows are not a multiple of the denominator.
    """
    if num_rows % share.denominator:
        raise ValueError(
            f"with same_time={float(1 - share):g} the number of rows on a device (of each micro-batch) must be a "
            f"multiple of {share.denominator}, got {num_rows} rows"
        )
    return np.arange(num_rows) % share.denominator < share.numerator


def rows_with_interval(share: Fraction, tree: Any) -> Any:
    """Those rows of a pytree ``[rows, ...]`` that have s > t, in their order.

    By blocks, not by an index: rows that are spread over devices in whole blocks then stay where they are.
    """

    def chosen(leaf: Any) -> Any:
        blocks = leaf.reshape(-1, share.denominator, *leaf.shape[1:])
        return blocks[:, : share.numerator].reshape(-1, *leaf.shape[1:])

    return jax.tree.map(chosen, tree)


def add_to_rows_with_interval(
    share: Fraction, rows: Float[Array, "rows *event"], change: Float[Array, "chosen *event"]
) -> Float[Array, "rows *event"]:
    """All rows, those with s > t changed."""
    event_shape = rows.shape[1:]
    blocks = rows.reshape(-1, share.denominator, *event_shape)
    changes = change.reshape(-1, share.numerator, *event_shape)
    return blocks.at[:, : share.numerator].add(changes).reshape(rows.shape)


def two_row_times(
    time_sampler: TimeSampler, batch: Batch, with_interval: Bool[np.ndarray, "rows"]
) -> tuple[Float[Array, "rows"], Float[Array, "rows"]]:
    """Times t and s of every row: two draws in their order with an interval, without one the first draw for both.

    Raises:
        ValueError: as `row_times`.
    """
    first = row_times(time_sampler, batch)
    # 0 and 1 are the keys of a split, those of the first time and of the path's noise.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(batch.key)
    second = draw_times(time_sampler, keys, first.dtype)
    second = jnp.where(with_interval, second, first)
    return jnp.minimum(first, second), jnp.maximum(first, second)


def guided_velocity(
    guidance: TargetGuidance,
    drift: TwoTimeDrift,
    params: Any,
    t: Float[Array, "rows"],
    x: Float[Array, "rows *event"],
    cond: Any,
    velocity: Float[Array, "rows *event"],
) -> Float[Array, "rows *event"]:
    """``omega v + kappa u(t, t, x | cond) + (1 - omega - kappa) u(t, t, x | null)``, ``omega = s (1 - kappa)``.

    Where u(t, t, . | cond) is the conditional mean of it, that is ``u(null) + s (v - u(null))``. Rows outside the
    interval, or whose condition is the null one, keep v.

    Raises:
        ValueError: if there are no conditions, or the null condition is not like one row of them.
    """
    if cond is None:
        raise ValueError("guidance is towards a condition, and the batch has cond=None.")
    null = null_like(guidance.null_cond, cond)
    student = instantaneous(drift)
    omega = guidance.scale * (1 - guidance.kappa)
    everywhere = jax.tree.map(lambda row, rows: jnp.broadcast_to(row, rows.shape), null, cond)
    without = evaluate(student, params, t, x, everywhere).astype(x.dtype)
    guided = omega * velocity + (1 - omega - guidance.kappa) * without
    if guidance.kappa > 0:
        guided += guidance.kappa * evaluate(student, params, t, x, cond).astype(x.dtype)
    start, end = guidance.interval
    applies = (start <= t) & (t <= end) & ~_is_null(null, cond)
    return jnp.where(applies.reshape(-1, *[1] * (x.ndim - 1)), guided, velocity)


def _is_null(null: Any, cond: Any) -> Bool[Array, "rows"]:
    """Which rows of the conditions are the null condition; NaN, which stands for a learned null, equals itself."""

    def of_leaf(row: Array, rows: Array) -> Array:
        same = (rows == row) | ((rows != rows) & (row != row))
        return jnp.all(same.reshape(rows.shape[0], -1), axis=-1)

    return jax.tree.reduce(jnp.logical_and, jax.tree.map(of_leaf, null, cond))


def rate_along(
    drift: TwoTimeDrift,
    params: Any,
    t: Float[Array, "rows"],
    s: Float[Array, "rows"],
    x: Float[Array, "rows *event"],
    cond: Any,
    velocity: Float[Array, "rows *event"],
) -> Float[Array, "rows *event"]:
    """``d/dt u(t, s, x_t)`` along ``dx/dt = velocity`` at fixed s: a forward-mode derivative, for (1, 0, velocity).

    Raises:
        ValueError: for a drift without a forward-mode derivative, with the remedy.
    """

    def average(t: Array, x: Array) -> Array:
        return evaluate_average(drift, params, t, s, x, cond)

    try:
        with forward_mode():
            _, rate = jax.jvp(average, (t, x), (jnp.ones_like(t), velocity))
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise ValueError(
            "this drift has no forward-mode derivative, since it calls a function with a gradient of its own "
            "(jax.custom_vjp), such as fused attention: give mean_flow the same network without it as tangent_drift, "
            "as from SiT's clone(fused_attention=False). It takes the same parameters, and is used for the derivative "
            "alone"
        ) from error
    return rate.astype(x.dtype)
