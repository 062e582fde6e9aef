"""Value-gradient guidance without a value network: the reward's gradient at a guess of the sample."""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gft_jax.drifts import evaluate
from gft_jax.objectives.control_rows import ControlRows, control_rows, every_point, regress, some_steps
from gft_jax.objectives.path_rows import squared_norm
from gft_jax.objectives.rollouts import (
    check_matched,
    check_positive,
    checked_grid,
    last_states,
    ode_step,
    velocity_of,
)
from gft_jax.rewards import evaluate as reward_of
from gft_jax.rewards import value_and_gradient
from gft_jax.types import Batch, Drift, Objective, Reward, Terms


def value_guidance(
    drift: Drift,
    reward: Reward,
    *,
    cost_weight: float | int,
    strength: Callable[[Array], Array] = lambda t: t**2,
    base_drift: Drift | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    num_matched: int | None = None,
) -> Objective:
    """Regression on ``v_base + eta(t) grad r(x1_hat) / lam``, ``x1_hat = x + (1 - t) v``, along the model's paths.

    The gradient of the reward stands for the adjoint (the gradient of the value); it is taken at the guess x1_hat, with
    no chain through v. No vector-Jacobian product of the network is needed.

    Stats: ``reward`` at the path's end, ``reward_gradient_norm`` (mean over the points that are regressed on),
    ``zero_gradient`` (1 where it is zero at all of them), ``matching_loss``, ``squared_control``. A reward that is not
    finite makes the loss so.

    Memory: the reward's gradient is taken at all points that are regressed on in one call, since in a loop the gradient
    of a convolution is slow on CPU. It grows with rows times points; ``num_matched`` bounds it.

    Args:
        drift: the velocity field that is trained; ``batch.x0`` is its noise.
        reward: r, see `gft_jax.rewards`.
        cost_weight: lam > 0, finite.
        strength: eta(t) >= 0, times ``[points]`` -> ``[points]``, or one number; small where the guess is poor. The
            square of t is a choice, not a law.
        base_drift: the base's velocity field; None for the same function.
        num_steps: N equal Euler steps, by default 50.
        times: instead of num_steps a whole grid from 0 to 1.
        num_matched: number of random points of each path to regress on, without repetition; None for all.

    Raises:
        ValueError: for a number out of range; in a step, for a strength, reward or drift that returns another shape.

    Source: the idea is that of Liu, Xiao, Domingo-Enrich, Liu, Zhang, "Value gradient guidance for flow matching
    alignment", arXiv:2512.05116, without its value network; the form is derived.
    """
    check_positive("cost_weight (lambda)", cost_weight)
    grid = checked_grid(num_steps, times)
    total = len(grid) - 1
    check_matched(num_matched, total)
    base_field = drift if base_drift is None else base_drift

    def prepare(params: Any, base_params: Any, state: Any, batch: Batch, temperature: Array) -> ControlRows:
        dtype = jnp.promote_types(batch.x0.dtype, jnp.float32)
        x0, cond = batch.x0.astype(dtype), batch.cond
        states = last_states(
            ode_step(diffrax.Euler(), velocity_of(drift, params, cond)), x0, grid.astype(dtype), total
        )
        end = reward_of(reward, states[-1], cond)

        # Points take the places of velocity and control until it is known which of them are used.
        at = states[:-1]
        rows = control_rows(batch, grid[:-1], at, at, at, np.diff(grid), {})
        rows = some_steps(batch.key, rows, num_matched)
        t, x, cond = every_point(rows)

        def over_event(values: Array) -> Array:
            return values.reshape(-1, *[1] * (x.ndim - 1))

        guess = x + over_event(1 - t) * evaluate(drift, params, t, x, cond)
        _, gradient = value_and_gradient(reward, guess, cond)
        norm = jnp.sqrt(squared_norm(gradient)).reshape(rows.t.shape)
        # A reward that is not finite stops the step, as with the other methods, also where only the report has it.
        is_finite = jnp.repeat(jnp.isfinite(end), rows.t.shape[1])
        pull = jnp.where(is_finite, _checked(strength(t), t) / cost_weight, jnp.nan)
        control = (over_event(pull) * gradient).reshape(rows.x.shape)
        base_velocity = evaluate(base_field, base_params, t, x, cond).reshape(rows.x.shape)
        stats = {
            "reward": end,
            "reward_gradient_norm": jnp.mean(norm, axis=1),
            "zero_gradient": jnp.all(norm == 0, axis=1).astype(dtype),
        }
        return rows._replace(base_velocity=base_velocity, control=control, stats=stats)

    def loss(params: Any, base_params: Any, rows: ControlRows, temperature: Array) -> Terms:
        return regress(drift, params, rows)

    return Objective(loss=loss, prepare=prepare, needs_base=True)


def _checked(strengths: Any, t: Array) -> Array:
    strengths = jnp.asarray(strengths)
    if strengths.shape not in ((), t.shape):
        raise ValueError(
            f"strength(t) must be a number or one for each time, shape {t.shape}, got shape {strengths.shape}"
        )
    return strengths
