"""Stochastic adjoint matching with memoryless noise, whose optimum is the tilted law."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gft_jax.diffusions import eta
from gft_jax.drifts import evaluate
from gft_jax.objectives.control_rows import (
    ControlRows,
    clip_state,
    control_rows,
    largest_norm,
    regress,
    reward_at_end,
    some_steps,
)
from gft_jax.objectives.gradient_clip import QuantileClip
from gft_jax.objectives.rollouts import check_matched, check_positive, checked_truncation, last_states
from gft_jax.paths import Path, coefficients, linear
from gft_jax.sampling import time_grids
from gft_jax.sampling.arguments import checked_count
from gft_jax.types import Batch, Drift, Objective, Reward, Terms


def memoryless_adjoint_matching(
    drift: Drift,
    reward: Reward,
    *,
    cost_weight: float | int | Callable[[Array], Array],
    path: Path = linear(),
    base_drift: Drift | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    truncation: int | None = None,
    num_matched: int | None = None,
    clip: QuantileClip | None = None,
    unroll: int = 10,
) -> Objective:
    """Adjoint matching on the memoryless process, with the tilted law ``p_base(x) exp(r(x) / lam)`` as its optimum.

    The process is ``dX = (2 v - (alpha'/alpha) X) dt + g dW`` with ``g^2 = 2 eta``, whose ends are independent; the
    linear path has ``g^2 = 2 (1 - t) / t``. Each step draws paths of the current drift, takes the lean adjoint of the
    base's SDE drift backwards from ``a(1) = grad r / lam``, and regresses: ``|(2 / g) (v - v_base) - g a|^2``. The
    tilted law is reached by the *ODE* of the trained velocity too.

    Ends: g is infinite at t = 0, so the paths start at t0 > 0 from N(0, I), the batch's noise; by default
    ``t0 = 1 / num_steps``. The bias is O(t0). The start of the batch must be N(0, I), independent of the data.

    The loss is ``sum_k h_k |(2 / g) (v - v_base) - g a_{k+1}|^2 / sum_k h_k`` over the used steps of a row. Stats have
    the names of `adjoint_matching`, with two differences: ``adjoint_norm`` counts in units of the reward over lam, and
    ``squared_control`` is the mean of ``|v - v_base|^2`` over the used steps with weights ``h_k / g_k^2``, those of the
    loss, which prefer late times.

    Args:
        drift: the velocity field that is trained.
        reward: r, see `gft_jax.rewards`.
        cost_weight: lam > 0, finite, or a function of the temperature: ``lambda beta: 1 + beta`` has the reward of the
            terminal objective, ``w r`` with the target weight w = 1 / (1 + beta), at lam = 1. Where a function
            returns another lam the loss is nan, and the training step changes nothing.
        path: affine path that the base was trained on, with a source N(0, I) independent of the data.
        base_drift: the base's velocity field; None for the same function.
        num_steps: N: the grid is ``1/N, 2/N, ..., 1``, by default with N = 50.
        times: instead of num_steps a grid from t0 in (0, 1) to 1.
        truncation: number K of last steps to train, 1 to their number; None for all.
        num_matched: number of random steps of each path to regress on, without repetition; None for all.
        clip: of the reward's gradient, before the adjoint; None for none.
        unroll: steps of the adjoint that are written out instead of looped over.

    Raises:
        ValueError: for a number out of range, a grid that does not run from t0 > 0 to 1, or a path without alpha and
            sigma; in a step, for a reward or drift that returns another shape.

    Source: Domingo-Enrich, Drozdzal, Karrer, Chen, "Adjoint Matching", arXiv:2409.08861, algorithm 1; clipping and
    truncation are additions.
    """
    if not callable(cost_weight):
        check_positive("cost_weight (lambda)", cost_weight)
    if path.alpha is None or path.sigma is None:
        raise ValueError(
            "this path has no alpha and sigma (it is a bridge, or carries added noise), so it has no memoryless "
            "process: give the affine path that the base was trained on"
        )
    grid = _checked_grid(num_steps, times)
    total = len(grid) - 1
    kept = checked_truncation(truncation, total)
    check_matched(num_matched, kept)
    unroll = checked_count("unroll", unroll)
    if clip is not None:
        clip.check()
    base_field = drift if base_drift is None else base_drift

    def prepare(
        params: Any, base_params: Any, threshold: Any, batch: Batch, temperature: Array
    ) -> ControlRows:
        dtype = jnp.promote_types(batch.x0.dtype, jnp.float32)
        weight = jnp.asarray(cost_weight(temperature) if callable(cost_weight) else cost_weight, dtype)
        # A negative one would train downhill. As nan it is seen by the guard of the training step.
        weight = jnp.where((weight > 0) & (weight < jnp.inf), weight, jnp.nan)
        key_noise, key_steps = jnp.moveaxis(jax.vmap(jax.random.split)(batch.key), 1, 0)
        x0, cond = batch.x0.astype(dtype), batch.cond
        states = last_states(_sde_step(path, drift, params, cond, key_noise), x0, grid.astype(dtype), kept)
        end = reward_at_end(reward, states[-1], cond, clip, threshold)
        tail = grid[-kept - 1 :].astype(dtype)
        at, lengths = jnp.asarray(tail[:-1]), jnp.asarray(np.diff(tail))

        def back(adjoint: Array, step: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            t, h, x = step
            velocity, pull = jax.vjp(lambda x: evaluate(base_field, base_params, t, x, cond), x)
            before = adjoint + h * (2 * pull(adjoint)[0] - _rate(path, t) * adjoint)
            return before, (adjoint, velocity)

        last = (end.gradient / weight).astype(dtype)
        steps = (at, lengths, states[:-1])
        first, (adjoints, velocities) = jax.lax.scan(
            back, last, steps, reverse=True, unroll=min(unroll, kept)
        )
        variance = 2 * eta(path, at)
        factor = (4 / variance) * lengths / jnp.sum(lengths)

        half = (0.5 * variance).reshape(-1, *[1] * x0.ndim)
        stats = {**end.stats, "adjoint_norm": largest_norm(jnp.concatenate([first[None], adjoints]))}
        rows = control_rows(batch, at, states[:-1], velocities, half * adjoints, factor, stats)
        return some_steps(key_steps, rows, num_matched)

    def loss(params: Any, base_params: Any, rows: ControlRows, temperature: Array) -> Terms:
        return regress(drift, params, rows)

    return Objective(loss=loss, prepare=prepare, needs_base=True, **clip_state(clip))


def _rate(path: Path, t: Array) -> Array:
    """``alpha' / alpha``."""
    alpha, _, alpha_dot, _ = coefficients(path, t)
    return alpha_dot / alpha


def _sde_step(
    path: Path, drift: Drift, params: Any, cond: Any, keys: Key[Array, "rows"]
) -> Callable[[Array, tuple[Array, Array, Array]], Array]:
    """A step of Euler and Maruyama; step k of a row has the noise of ``fold_in(key, k)``."""

    def advance(x: Float[Array, "rows *event"], at: tuple[Array, Array, Array]) -> Array:
        index, t, h = at
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:], x.dtype))(
            keys
        )
        velocity = evaluate(drift, params, t, x, cond)
        return x + h * (2 * velocity - _rate(path, t) * x) + jnp.sqrt(2 * eta(path, t) * h) * noise

    return advance


def _checked_grid(num_steps: int | None, times: Sequence[float] | np.ndarray | None) -> np.ndarray:
    if times is None:
        count = 50 if num_steps is None else checked_count("num_steps", num_steps)
        if count < 2:
            raise ValueError(
                f"num_steps must be >= 2, since the paths start at t0 = 1 / num_steps; got {count}"
            )
        return np.arange(1, count + 1) / count
    grid = time_grids.resolve(times, None, None, num_steps, np.float64)
    if not 0 < grid[0] < grid[-1] == 1:
        raise ValueError(
            f"times must run from t0 in (0, 1), where the memoryless noise is finite, to 1; got a grid from {grid[0]} "
            f"to {grid[-1]}"
        )
    return grid
