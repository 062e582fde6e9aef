"""Gradual fine-tuning: regression on a drift that cools from the pretrained to the target drift."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gft_jax.cooling import target_weight
from gft_jax.drifts import evaluate
from gft_jax.objectives import weighting as weightings
from gft_jax.objectives.path_rows import PathRows, displacement_moments, path_rows, squared_norm
from gft_jax.objectives.time_sampling import uniform
from gft_jax.paths import Path, linear
from gft_jax.types import Batch, Drift, Objective, Terms, TimeSampler, Weighting

BasePath = Callable[[Drift, Any, Array, Array, Any], Array]
"""Samples of the base model's path: ``(base_drift, base_params, t, x0, cond)`` -> x ``[rows, *event]``."""


class GradualRows(NamedTuple):
    """Path points of all rows, and the frozen base on every k-th of them."""

    path: PathRows
    base_x: Array | None
    """Where the penalty is taken ``[rows / k, *event]``; None if on the target path itself."""
    base_velocity: Array
    """Velocity of the base there ``[rows / k, *event]``; zeros at zero temperature."""


def rolled_out(num_steps: int = 8) -> BasePath:
    """Samples of the base model's own path: its ODE from the row's ``x0`` to the row's ``t``, by Euler steps.

    A step of training then costs ``num_steps`` more evaluations of the base on the rows that carry the penalty.
    The rows' own conditions are used; under a coupling of noise with data they are as dependent on ``x0`` as the
    coupling makes them.

    Raises:
        ValueError: if ``num_steps`` < 1.
    """
    if num_steps < 1:
        raise ValueError(f"a rollout needs num_steps >= 1, got {num_steps}")

    def sample(base_drift: Drift, base_params: Any, t: Array, x0: Array, cond: Any) -> Array:
        step_size = (t / num_steps).reshape(t.shape + (1,) * (x0.ndim - 1))

        def euler(k: Array, x: Array) -> Array:
            return x + step_size * evaluate(base_drift, base_params, k * t / num_steps, x, cond)

        return jax.lax.fori_loop(0, num_steps, euler, x0)

    return sample


def gradual(
    drift: Drift,
    path: Path = linear(),
    *,
    base_drift: Drift | None = None,
    time_sampler: TimeSampler = uniform(),
    weighting: Weighting = weightings.uniform,
    normalized: bool = True,
    base_every: int = 1,
    base_path: BasePath | None = None,
) -> Objective:
    """Gradual fine-tuning (GFT) in drift space, for any coupling of the ends.

    With temperature ``beta`` and target weight ``w = 1 / (1 + beta)`` the objective is

        E k(t) [ |v(t, x_t) - u_t(x_t | x0, x1)|^2 + beta |v(t, x_t) - v_base(t, x_t)|^2 ],

    minimised by the blended drift ``w u* + (1 - w) v_base``, where ``u*`` is the marginal drift of the target
    path: the pretrained drift for ``beta -> inf``, the target drift at ``beta = 0``. It is computed as one
    regression on the blended target ``w u_t + (1 - w) v_base``, which has the same gradient up to the factor
    ``1 + beta``. At zero temperature the base is not evaluated at all, and the gradient is flow matching's.
    (Under ``vmap`` over several temperatures both branches of that decision run: map over seeds at one temperature,
    or loop.)

    The stats hold ``flow_matching_loss``, which can be compared between all settings while the loss itself cannot
    (it is the error to the blended target, or the two weighted errors), and the two moments from which the
    *effective target weight* is estimated (`gft_jax.cooling.effective_target_weight`): ``displacement_squared =
    k |r|^2`` and ``displacement_along_target = k <r, d>`` with ``r = v - v_base``, ``d = u_t - v_base``. Both are
    zero at zero temperature, and absent where the penalty lies on the base path: there they say nothing.

    Source: "Gradual fine-tuning for flow matching models", arXiv:2601.22495, whose published description gives
    the interpolation; the formulas are derived from it.

    Args:
        drift: the velocity field that is trained.
        path: probability path.
        base_drift: the pretrained velocity field, if its network is not ``drift``'s; the fine-tuner's ``init`` then
            needs ``params`` to start from.
        time_sampler: draws the flow time of a row.
        weighting: k(t) of both squared errors.
        normalized: if False, the loss keeps the factor ``1 + beta``, and with it an effective learning rate that
            falls as the temperature does; not defined at infinite temperature.
        base_every: the base is evaluated on every ``base_every``-th row alone:
            ``w mean_all |v - u|^2 + (1 - w) mean_S |v - v_base|^2``, an unbiased estimate at a fraction of the
            cost. Rows (per device) must be a multiple of it.
        base_path: where the penalty is taken: None for the target path (the points of the rows themselves), or
            samples of the base model's own path such as `rolled_out`. The optimum is then
            ``(p_t u* + beta p_t^base v_base) / (p_t + beta p_t^base)``. The student is evaluated on these samples
            too, also at zero temperature.

    Raises:
        ValueError: if ``base_every`` < 1; in a step, if the rows are not a multiple of it.
    """
    if base_every < 1:
        raise ValueError(f"base_every counts rows and must be >= 1, got {base_every}")
    base_drift = drift if base_drift is None else base_drift
    blend_targets = base_every == 1 and base_path is None

    def prepare(
        params: Any, base_params: Any, objective_state: Any, batch: Batch, temperature: Array
    ) -> GradualRows:
        rows = path_rows(path, time_sampler, weighting, batch)
        num_rows = rows.t.shape[0]
        if num_rows % base_every:
            raise ValueError(
                f"with base_every={base_every} the number of rows on a device must be a multiple of it, "
                f"got {num_rows} rows"
            )
        x0, t, x, cond = _every(base_every, (batch.x0, rows.t, rows.x, rows.cond))

        def on_base_rows() -> tuple[Array, Array]:
            at = x if base_path is None else base_path(base_drift, base_params, t, x0, cond)
            return at, evaluate(base_drift, base_params, t, at, cond).astype(x.dtype)

        at, velocity = jax.lax.cond(temperature > 0, on_base_rows, lambda: (x, jnp.zeros_like(x)))
        return GradualRows(rows, None if base_path is None else at, velocity)

    def loss(params: Any, base_params: Any, rows: GradualRows, temperature: Array) -> Terms:
        path_rows, base_velocity = rows.path, rows.base_velocity
        w = target_weight(temperature).astype(path_rows.t.dtype)
        num_rows = path_rows.t.shape[0]
        if rows.base_x is None:
            velocity = evaluate(drift, params, path_rows.t, path_rows.x, path_rows.cond)
            on_base = velocity[::base_every]
        else:
            t, cond = _every(base_every, (path_rows.t, path_rows.cond))
            everywhere = jax.tree.map(
                lambda rows, base_rows: jnp.concatenate([rows, base_rows]),
                (path_rows.t, path_rows.x, path_rows.cond),
                (t, rows.base_x, cond),
            )
            velocity, on_base = jnp.split(evaluate(drift, params, *everywhere), [num_rows])

        def on_all_rows(values: Float[Array, "base_rows"]) -> Float[Array, "rows"]:
            # Their sum over all rows is the mean over the base rows times the number of rows.
            spread = jnp.zeros((num_rows,), values.dtype).at[::base_every].set(base_every * values)
            return path_rows.factor * spread

        flow_matching_loss = path_rows.factor * squared_norm(velocity - path_rows.velocity)
        displacement = on_base - base_velocity
        if blend_targets:
            target = w * path_rows.velocity + (1.0 - w) * base_velocity
            error = path_rows.factor * squared_norm(velocity - target)
        else:
            error = w * flow_matching_loss + (1.0 - w) * on_all_rows(squared_norm(displacement))
        if not normalized:
            error = (1.0 + temperature) * error

        stats = {"flow_matching_loss": flow_matching_loss}
        if rows.base_x is None:
            toward = path_rows.velocity[::base_every] - base_velocity
            moments = displacement_moments(displacement, toward)
            stats |= {
                name: jnp.where(temperature > 0, on_all_rows(moment), 0.0) for name, moment in moments.items()
            }
        return Terms(error, path_rows.weight, stats)

    return Objective(loss=loss, prepare=prepare, needs_base=True)


def _every(k: int, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[::k], tree)
