"""The regression on average velocities that MeanFlow and gradual MeanFlow have in common."""

import functools
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gft_jax.cooling import target_weight
from gft_jax.drifts import evaluate, evaluate_average
from gft_jax.drifts.two_times import check_two_times
from gft_jax.objectives.average_target import (
    TargetGuidance,
    add_to_rows_with_interval,
    checked_guidance,
    guided_velocity,
    has_interval,
    interval_share,
    rate_along,
    rows_with_interval,
    two_row_times,
)
from gft_jax.objectives.path_rows import PathRows, displacement_moments, path_rows_at, squared_norm
from gft_jax.paths import Path
from gft_jax.types import Batch, Drift, Objective, Terms, TimeSampler, TwoTimeDrift, Weighting


class MeanFlowRows(NamedTuple):
    """Path points of all rows, and what is regressed on there."""

    path: PathRows
    s: Array
    """Second times ``[rows]``, at least those of the path."""
    target: Array
    """Average velocities from t to s ``[rows, *event]``."""
    base_velocity: Array | None
    """Velocity of the base at t ``[rows, *event]``, zeros at zero temperature; None where there is no base."""


def average_regression(
    drift: TwoTimeDrift,
    path: Path,
    base_drift: Drift | None,
    time_sampler: TimeSampler,
    weighting: Weighting,
    same_time: float,
    adaptive: tuple[float, float],
    guidance: TargetGuidance | None,
    tangent_drift: TwoTimeDrift | None,
) -> Objective:
    """Regression on the average velocity along conditional velocities, blended with those of a base where there is one.

    Args and errors as of `gft_jax.objectives.gradual_mean_flow`; ``adaptive`` are power and offset of its weight.
    """
    tangent_drift = drift if tangent_drift is None else tangent_drift
    for each in (drift, tangent_drift):
        check_two_times(each)
    share = interval_share(same_time)
    power, offset = adaptive
    if not power >= 0 or not offset > 0:
        raise ValueError(
            "the adaptive weight 1 / (error + c)^p needs adaptive_power p >= 0 and adaptive_offset c > 0, got "
            f"p={power} and c={offset}"
        )
    if guidance is not None:
        guidance = checked_guidance(guidance, share)

    def prepare(
        params: Any, base_params: Any, objective_state: Any, batch: Batch, temperature: Array
    ) -> MeanFlowRows:
        with_interval = has_interval(share, batch.x0.shape[0])
        t, s = two_row_times(time_sampler, batch, with_interval)
        rows = path_rows_at(path, t, weighting, batch)
        x, cond, velocity, base_velocity = rows.x, rows.cond, rows.velocity, None
        if base_drift is not None:
            base = functools.partial(evaluate, base_drift, base_params, t, x, cond)
            base_velocity = jax.lax.cond(
                temperature > 0,
                lambda: base().astype(x.dtype),
                lambda: jnp.zeros_like(x),
            )
            w = target_weight(temperature).astype(x.dtype)
            velocity = w * velocity + (1.0 - w) * base_velocity
        if guidance is not None:
            velocity = guided_velocity(guidance, drift, params, t, x, cond, velocity)
        target = velocity
        if share > 0:
            there = rows_with_interval(share, (t, s, x, cond, velocity))
            length = (there[1] - there[0]).reshape(-1, *[1] * (x.ndim - 1))
            rates = length * rate_along(tangent_drift, params, *there)
            target = add_to_rows_with_interval(share, target, rates)
        return MeanFlowRows(rows, s, target, base_velocity)

    def loss(params: Any, base_params: Any, rows: MeanFlowRows, temperature: Array) -> Terms:
        at = rows.path
        average = evaluate_average(drift, params, at.t, rows.s, at.x, at.cond)
        squared = squared_norm(average - rows.target)
        factor = at.factor
        if power > 0:
            factor *= jax.lax.stop_gradient(squared + offset) ** -power
        with_interval = has_interval(share, at.t.shape[0])
        stats = {}
        if share > 0:
            stats["mean_flow_loss"] = at.factor * squared * _mean_over(with_interval, share, at.t)
        if share < 1:
            same = _mean_over(~with_interval, 1 - share, at.t)
            stats["flow_matching_loss"] = at.factor * same * squared_norm(average - at.velocity)
            if rows.base_velocity is not None and guidance is None:
                base = rows.base_velocity
                moments = displacement_moments(average - base, at.velocity - base)
                stats |= {
                    name: jnp.where(temperature > 0, factor * same * moment, 0.0)
                    for name, moment in moments.items()
                }
        return Terms(factor * squared, at.weight, stats)

    return Objective(loss=loss, prepare=prepare, needs_base=base_drift is not None)


def _mean_over(rows: Bool[np.ndarray, "rows"], share: Fraction, like: Array) -> Float[Array, "rows"]:
    """Factors by which the mean over all rows becomes that over some, a share of them."""
    return jnp.asarray(rows / float(share), like.dtype)
