"""Raising a reward by its gradient through the last steps of sampling."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gft_jax.control_costs import ControlCost, check_cost, quadratic
from gft_jax.drifts import evaluate
from gft_jax.objectives.control_rows import reward_at_end
from gft_jax.objectives.path_rows import row_weights, squared_norm
from gft_jax.objectives.rollouts import (
    check_positive,
    checked_grid,
    checked_truncation,
    last_states,
    ode_step,
    velocity_of,
)
from gft_jax.types import Batch, Drift, Objective, Reward, Terms


class _Start(NamedTuple):
    x: Array
    """Where the differentiated steps begin ``[rows, *event]``."""
    weight: Array
    cond: Any


class _Jumps(NamedTuple):
    x: Array
    """Where the jumps to the end begin ``[rows, *event]``."""
    weight: Array
    cond: Any
    jump: Array
    """At what time ``[rows]``."""


def draft(
    drift: Drift,
    reward: Reward,
    *,
    cost_weight: float | int = 0.0,
    cost: ControlCost = quadratic(),
    base_drift: Drift | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    truncation: int | None = 3,
) -> Objective:
    """DRaFT-K: the loss ``-r(x_1) + lam sum_k h_k c(u_k)``, differentiated through the last K Euler steps.

    With ``cost_weight=0`` it is the published method, which has no bond to the base but a small number of steps or
    of trained parameters; with lam > 0 it is the control problem of `adjoint_matching` on the last K steps, by plain
    differentiation, which keeps all of K steps in memory.

    Stats: ``reward``, ``reward_gradient_norm``, ``zero_gradient`` (1 where the gradient is zero), ``squared_control``
    (mean over the K steps; where lam = 0 the base is not evaluated, and it is left out). A reward that is not finite
    makes the loss so. The loss has the reward's first derivatives alone.

    Args:
        drift: the velocity field that is trained; ``batch.x0`` is its noise.
        reward: r, see `gft_jax.rewards`.
        cost_weight: lam >= 0, finite.
        cost: c, see `gft_jax.control_costs`.
        base_drift: the base's velocity field; None for the same function.
        num_steps: N equal steps, by default 50.
        times: instead of num_steps a whole grid from 0 to 1.
        truncation: K in 1 .. N, or None for all steps.

    Raises:
        ValueError: for a number out of range.

    Source: Clark et al., "Directly fine-tuning diffusion models on differentiable rewards", arXiv:2309.17400.
    """
    check_positive("cost_weight (lambda)", cost_weight, or_zero=True)
    check_cost(cost)
    grid = checked_grid(num_steps, times)
    kept = checked_truncation(truncation, len(grid) - 1)
    first = len(grid) - 1 - kept
    base_field = drift if base_drift is None else base_drift

    def prepare(params: Any, base_params: Any, state: Any, batch: Batch, temperature: Array) -> _Start:
        return _start(drift, params, batch, grid, first)

    def loss(params: Any, base_params: Any, rows: _Start, temperature: Array) -> Terms:
        x, price, square = rows.x, jnp.zeros_like(rows.weight), jnp.zeros_like(rows.weight)
        for t, h in zip(grid[first:-1].tolist(), np.diff(grid[first:]).tolist(), strict=True):
            velocity = evaluate(drift, params, t, x, rows.cond)
            if cost_weight > 0:
                control = velocity - evaluate(base_field, base_params, t, x, rows.cond)
                price += h * cost.cost(control)
                square += squared_norm(control) / kept
            x = x + h * velocity
        values, stats = _ascended(reward, x, rows.cond)
        stats |= {"squared_control": square} if cost_weight > 0 else {}
        return Terms(cost_weight * price - values, rows.weight, stats)

    return Objective(loss=loss, prepare=prepare, needs_base=cost_weight > 0)


def refl(
    drift: Drift,
    reward: Reward,
    *,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    truncation: int | None = 10,
) -> Objective:
    """ReFL: the loss ``-r(x + (1 - t) v(t, x))`` at one random step of the last K, by a single differentiated call.

    The path up to the step is that of the current drift, without a gradient; from there a straight jump leads to the
    end. The reward sees a guess of the sample, not the sample.

    Stats: ``reward``, ``reward_gradient_norm`` and ``zero_gradient`` of the guess. The loss has the reward's first
    derivatives alone.

    Args:
        drift: the velocity field that is trained; ``batch.x0`` is its noise.
        reward: r, see `gft_jax.rewards`.
        num_steps: N equal Euler steps, by default 50.
        times: instead of num_steps a whole grid from 0 to 1.
        truncation: K in 1 .. N, or None for all steps.

    Raises:
        ValueError: for a number out of range.

    Source: Xu et al., "ImageReward", arXiv:2304.05977, algorithm 1, written for a velocity.
    """
    grid = checked_grid(num_steps, times)
    kept = checked_truncation(truncation, len(grid) - 1)

    def prepare(params: Any, base_params: Any, state: Any, batch: Batch, temperature: Array) -> _Jumps:
        dtype = jnp.promote_types(batch.x0.dtype, jnp.float32)
        advance = ode_step(diffrax.Euler(), velocity_of(drift, params, batch.cond))
        states = last_states(advance, batch.x0.astype(dtype), grid.astype(dtype), kept)
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, kept))(batch.key)
        x, times_of_steps = states[drawn, jnp.arange(len(drawn))], jnp.asarray(grid[-kept - 1 : -1], dtype)
        return _Jumps(x, row_weights(batch, dtype), batch.cond, times_of_steps[drawn])

    def loss(params: Any, base_params: Any, rows: _Jumps, temperature: Array) -> Terms:
        velocity = evaluate(drift, params, rows.jump, rows.x, rows.cond)
        left = (1 - rows.jump).reshape(-1, *[1] * (rows.x.ndim - 1))
        values, stats = _ascended(reward, rows.x + left * velocity, rows.cond)
        return Terms(-values, rows.weight, stats)

    return Objective(loss=loss, prepare=prepare)


def _ascended(reward: Reward, x: Float[Array, "rows *event"], cond: Any) -> tuple[Array, dict[str, Array]]:
    """Reward of each row, with its own gradient as its derivative by the row, and the diagnostics of both."""
    still = jax.lax.stop_gradient(x)
    end = reward_at_end(reward, still, cond, None, None)
    step = jnp.sum((end.gradient * (x - still)).reshape(x.shape[0], -1), axis=-1)
    return end.stats["reward"] + step, end.stats


def _start(drift: Drift, params: Any, batch: Batch, grid: np.ndarray, first: int) -> _Start:
    """The path up to the differentiated steps."""
    dtype = jnp.promote_types(batch.x0.dtype, jnp.float32)
    x = batch.x0.astype(dtype)
    if first > 0:
        advance = ode_step(diffrax.Euler(), velocity_of(drift, params, batch.cond))
        x = last_states(advance, x, grid[: first + 1].astype(dtype), 1)[-1]
    return _Start(x, row_weights(batch, dtype), batch.cond)
