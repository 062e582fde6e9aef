"""One drift of two evaluations: guidance, and the dial between base and fine-tuned model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from gft_jax.conditions import null_like
from gft_jax.drifts.base import evaluate
from gft_jax.types import Drift

ALWAYS = (0.0, 1.0)
"""The interval of all flow times."""


class BlendParams(NamedTuple):
    """Parameters of a blended drift. All are data: another target weight needs no compilation."""

    base: Any
    """Parameters of the base drift."""
    tuned: Any
    """Parameters of the fine-tuned drift."""
    target_weight: ArrayLike
    """w, a scalar or ``[batch]``: 0 is the base, 1 the fine-tuned drift; outside [0, 1] it extrapolates."""


class GuidanceParams(NamedTuple):
    """Parameters of a guided drift. All are data: another scale needs no compilation."""

    params: Any
    """Parameters of the drift that is guided."""
    scale: ArrayLike
    """s, a scalar or ``[batch]``: 0 is the unconditional velocity, 1 the conditional one, above 1 is guidance."""


def blend(
    drift_base: Drift,
    drift_tuned: Drift | None = None,
    *,
    interval: tuple[float, float] | np.ndarray = ALWAYS,
) -> Drift:
    """Drift over `BlendParams`: ``v = (1 - w) v_base + w v_tuned``, w the target weight.

    A dial between two models at sampling time. With the exact drifts of the base and of the target it is
    the minimiser of the gradual objective at temperature ``(1 - w) / w``, so its ODE shows the law that the
    objective leads to. Weights above 1 are *guidance between base and fine-tuned model*: the velocity goes on, past
    the fine-tuned one, in the direction in which fine-tuning has moved it; weights below 0 go the other way. The
    laws reached outside [0, 1] are those of no objective, and may be far from both: for the linear path from N(0, 1)
    to N(m, s^2) with a base of N(0, 1), the standard deviation is ``s^w``.

    At w = 0 and w = 1 the velocity is that of the one model, bit for bit, even where the other is not finite. The
    derivative by w is that of the formula elsewhere, and zero at exactly 0 and 1. Both models are evaluated at
    every w; outside the interval the fine-tuned one alone.

    Args:
        drift_base: drift of the base model.
        drift_tuned: drift of the fine-tuned model; None for the same function as the base.
        interval: flow times (both ends included) at which the models are blended; outside, the velocity is the
            fine-tuned one. See `guide` for the jumps that it makes.

    Raises:
        ValueError: for an interval that is not ``0 <= start < end <= 1``; from the drift, for parameters that are no
            `BlendParams`, or weights that are neither a scalar nor one a row.

    Source: guidance by a weaker version of the model, Karras et al., "Guiding a diffusion model with a bad version of
    itself", arXiv:2406.02507.
    """
    interval = checked_interval(interval)
    drift_other = drift_base if drift_tuned is None else drift_tuned

    def drift(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        if not isinstance(params, BlendParams):
            raise ValueError(
                "a blended drift takes BlendParams(base, tuned, target_weight) as its parameters, got "
                f"{type(params).__name__}."
            )
        return _between(
            lambda: evaluate(drift_base, params.base, t, x, cond),
            lambda: evaluate(drift_other, params.tuned, t, x, cond),
            ("target_weight", params.target_weight),
            t,
            x,
            interval,
        )

    return drift


def guide(drift: Drift, null_cond: Any, *, interval: tuple[float, float] | np.ndarray = ALWAYS) -> Drift:
    """Drift over `GuidanceParams` by classifier-free guidance: ``v = v(null) + s (v(cond) - v(null))``.

    The scale s is 1 for the conditional velocity (bit for bit), 0 for the unconditional one. Some authors write
    ``1 + w`` for it. The model must have been trained with conditions dropped to the same null
    (``cond_dropout`` and ``null_cond`` of `gft_jax.pairing.batches`). The guided field is no marginal velocity: at
    scales other than 0 and 1 its samples do not in general follow ``p(x | cond)^s p(x)^(1 - s)``. The derivative by s
    is that of the formula, but zero at exactly 0 and 1, where the velocity is that of the one evaluation.

    Cost: two evaluations of the drift where there is guidance, and one outside the interval. Counts of evaluations by
    a sampler are of the guided drift, so two each. An interval makes the velocity jump in time. Fixed steps then err
    by a step's length times the jump, whatever their order; with an adaptive controller, tell it:
    ``diffrax.ClipStepSizeController(controller, jump_ts=interval)``.

    Args:
        drift: the conditional velocity field.
        null_cond: the null condition, like one row of cond (leaves ``[...]`` where cond has ``[batch, ...]``), the
            same for all rows; or None for a drift that is called without a condition instead. It may be traced.
        interval: flow times (both ends included) with guidance; outside, the velocity is the conditional one.

    Raises:
        ValueError: for an interval that is not ``0 <= start < end <= 1``; from the drift, if it is called without a
            condition or with parameters that are no `GuidanceParams`, the null condition is not like one row of it,
            or scales are neither a scalar nor one a row.

    Source: Ho and Salimans, "Classifier-free diffusion guidance", arXiv:2207.12598; intervals: Kynkäänniemi et al.,
    "Applying guidance in a limited interval improves sample and distribution quality in diffusion models",
    arXiv:2404.07724.
    """
    interval = checked_interval(interval)

    def guided(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        if not isinstance(params, GuidanceParams):
            raise ValueError(
                f"a guided drift takes GuidanceParams(params, scale) as its parameters, got {type(params).__name__}."
            )
        if cond is None:
            raise ValueError("guidance is towards a condition, but the drift was called with cond=None.")
        null = None
        if null_cond is not None:
            null = jax.tree.map(
                lambda row, rows: jnp.broadcast_to(row, rows.shape), null_like(null_cond, cond), cond
            )
        return _between(
            lambda: evaluate(drift, params.params, t, x, null),
            lambda: evaluate(drift, params.params, t, x, cond),
            ("scale", params.scale),
            t,
            x,
            interval,
        )

    return guided


def _between(
    at_zero: Callable[[], Array],
    at_one: Callable[[], Array],
    named_weight: tuple[str, ArrayLike],
    t: Array,
    x: Array,
    interval: tuple[float, float],
) -> Array:
    """``(1 - w) at_zero + w at_one`` within the interval, else at_one; exact at the ends."""
    one = at_one()
    if interval == ALWAYS:
        zero, inside = at_zero(), True
    else:
        inside = (t >= interval[0]) & (t <= interval[1])
        dtype = jnp.result_type(one, jax.eval_shape(at_zero))
        # A sampler's rows share their time: outside the interval the evaluation is left out.
        zero = jax.lax.cond(jnp.any(inside), lambda: at_zero().astype(dtype), lambda: one.astype(dtype))
    name, weight = named_weight[0], jnp.asarray(named_weight[1], jnp.result_type(zero, one))
    if weight.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} must be a scalar or have shape {x.shape[:1]}, one value for each row of x of shape {x.shape}; "
            f"got shape {weight.shape}."
        )
    weight = jnp.where(inside, weight, 1)
    weight = weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
    # The ends are selected: 0 * inf is not 0.
    return jnp.where(weight == 0, zero, jnp.where(weight == 1, one, (1 - weight) * zero + weight * one))


def checked_interval(interval: tuple[float, float] | np.ndarray) -> tuple[float, float]:
    """Flow times with guidance, as numbers.

    Raises:
        ValueError: unless ``0 <= start < end <= 1``.
    """
    if np.shape(interval) != (2,) or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(
            f"interval is {interval}; it must be (start, end) in flow time with 0 <= start < end <= 1."
        )
    return float(interval[0]), float(interval[1])
