"""Deterministic adjoint matching: reward fine-tuning that keeps the sampler an ODE."""

from collections.abc import Sequence
from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gft_jax.control_costs import ControlCost, check_cost, quadratic
from gft_jax.objectives.adjoints import Adjoint, LastSteps, check_solver, lean_adjoint
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
from gft_jax.objectives.rollouts import (
    check_matched,
    check_positive,
    checked_grid,
    checked_truncation,
    euler,
    last_states,
    ode_step,
    step_of,
    velocity_of,
)
from gft_jax.sampling.arguments import checked_count
from gft_jax.types import Batch, Drift, Objective, Reward, Terms


def adjoint_matching(
    drift: Drift,
    reward: Reward,
    *,
    cost_weight: float | int,
    cost: ControlCost = quadratic(),
    base_drift: Drift | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    truncation: int | None = None,
    adjoint: Adjoint = lean_adjoint,
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    num_matched: int | None = None,
    clip: QuantileClip | None = None,
    unroll: int = 10,
    row_by_row: bool = False,
) -> Objective:
    """Deterministic adjoint matching, for ``max_v E[r(x_1)] - lam E int c(v - v_base) dt`` over ``dx/dt = v(t, x)``.

    Each step rolls out the current drift from the batch's noise, takes the adjoint a backwards along the paths from
    ``grad r(x_1)``, and regresses the drift on ``v_base + u*``, ``lam grad c(u*) = a``, at the states of the path. No
    gradient goes through path or adjoint; the base's velocity comes from the adjoint's own products and is not
    evaluated again. At the optimum ``lam grad c(u) = a`` holds along the model's own paths.

    *What the optimum is.* The deterministic control problem trades reward for cost along each path; it does not lead
    to the tilted law ``p_base exp(r / lam)``, which `memoryless_adjoint_matching` does. From N(0, 1) with a base of
    zero velocity and ``r = -(kappa/2) (x - m)^2`` it is normal with the tilted law's mean ``kappa m / (lam + kappa)``,
    but with standard deviation ``lam / (lam + kappa)`` in place of its root. So watch diversity beside reward.

    *Truncation.* With ``truncation=K`` adjoint and regression are on the last K steps alone, which saves all products
    but K; the drift still acts on all steps, as it does in sampling. Steps that are not trained keep what they have, so
    at the same lam the model is under-controlled: choose lam for each K.

    *The loss* is ``sum_k h_k |v - v_base - u*|^2 / sum_k h_k`` over the used steps of a row. With Euler's method the
    control at x_k is matched to a_{k+1}, and with the quadratic cost and all steps its gradient is ``-2 / lam`` times
    that of the discrete control problem: with the full adjoint everywhere, with the lean one at the base. With
    Heun's it is matched to a_k at all ends of steps, with the weights of the trapezoidal rule, right to second order.

    Stats: ``reward``, ``reward_gradient_norm``, ``zero_gradient`` (1 where the gradient is zero), ``adjoint_norm`` (the
    largest along the path: where it is far above the gradient's norm, the adjoint explodes), ``matching_loss``,
    ``squared_control`` (mean of ``|v - v_base|^2`` over the used steps); with a clip ``unclipped`` and
    ``log_gradient_norm`` (0 for a zero gradient). A path, reward or adjoint that is not finite makes the loss so, and
    the training step then leaves the parameters as they are.

    Precision: path and adjoint are float32 at least, whatever the network computes in. Convolutions on CPU: XLA's
    gradient of a convolution is slow inside a loop, so let ``unroll`` be at least the number of used steps, and do not
    take steps by ``step_many``.

    Guidance: the drift that is rolled out, differentiated and trained is the one given. To fine-tune under guidance
    give a guided drift: ``lambda p, t, x, c=None: guided(GuidanceParams(p, 4.0), t, x, c)`` with
    ``guided = gft.drifts.guide(drift, null_cond)``. The condition of a row is the same in path, base, adjoint and
    reward.

    Args:
        drift: the velocity field that is trained; ``batch.x0`` is its noise, ``batch.x1`` is not used.
        reward: r, see `gft_jax.rewards`.
        cost_weight: lam > 0, finite, what a unit of cost is worth in units of reward.
        cost: c, see `gft_jax.control_costs`.
        base_drift: the base's velocity field; None for the same function.
        num_steps: N equal steps of the paths, by default 50.
        times: instead of num_steps a whole grid from 0 to 1, see `gft_jax.sampling.time_grids`.
        truncation: K in 1 .. N, or None for all steps.
        adjoint: `lean_adjoint` or `full_adjoint`.
        solver: ``diffrax.Euler()`` or ``diffrax.Heun()``, of the paths and of the adjoint.
        num_matched: number of random points of each path to regress on, without repetition; None for all.
        clip: of the reward's gradient, before the adjoint; None for none.
        unroll: steps of the adjoint that are written out instead of looped over.
        row_by_row: evaluate drift and base on single rows under ``jax.vmap`` in path and adjoint. All rows have one
            time there, and what depends on it alone, such as an embedding, is then computed once: a narrow network is
            faster by it. Not for a drift that cannot stand under vmap, as one that constrains its sharding.

    Raises:
        ValueError: for a number out of range; a grid that does not run from 0 to 1; the full adjoint with Heun's
            method; in a step, for a reward or drift that returns another shape.

    Source: the idea, truncation and other costs than the quadratic one are those of arXiv:2605.06583, from its
    published description; the formulas are derived.
    """
    check_positive(
        "cost_weight (lambda)",
        cost_weight,
        ": without a cost the best control is not finite, with all cost it is zero",
    )
    check_cost(cost)
    grid = checked_grid(num_steps, times)
    total = len(grid) - 1
    kept = checked_truncation(truncation, total)
    step = step_of(solver)
    check_solver(adjoint, step)
    num_points = kept if step is euler else kept + 1
    check_matched(num_matched, num_points)
    unroll = checked_count("unroll", unroll)
    if clip is not None:
        clip.check()
    base_field = drift if base_drift is None else base_drift

    def prepare(
        params: Any, base_params: Any, threshold: Any, batch: Batch, temperature: Array
    ) -> ControlRows:
        dtype = jnp.promote_types(batch.x0.dtype, jnp.float32)
        tail = grid[-kept - 1 :].astype(dtype)
        x0, cond = batch.x0.astype(dtype), batch.cond
        student = velocity_of(drift, params, cond, row_by_row)
        base = velocity_of(base_field, base_params, cond, row_by_row)
        states = last_states(ode_step(solver, student), x0, grid.astype(dtype), kept)
        end = reward_at_end(reward, states[-1], cond, clip, threshold)
        lengths = np.diff(tail)
        path = LastSteps(states, jnp.asarray(tail[:-1]), jnp.asarray(lengths), base, student)
        along = adjoint(path, end.gradient.astype(dtype), step, cost, cost_weight, unroll)
        if step is euler:
            points, adjoints, velocities = states[:-1], along.at_end, along.base_velocity
            at, factor = tail[:-1], lengths
        else:
            points = states
            adjoints = jnp.concatenate([along.at_start, along.at_end[-1:]])
            velocities = jnp.concatenate([along.base_velocity, base(jnp.asarray(tail[-1]), states[-1])[None]])
            at, factor = tail, 0.5 * (np.append(lengths, 0) + np.append(0, lengths))
        pull = adjoints.reshape(-1, *adjoints.shape[2:]) / cost_weight
        control = cost.control(pull).reshape(adjoints.shape)
        norm = largest_norm(jnp.concatenate([along.at_start[:1], adjoints]))
        stats = {**end.stats, "adjoint_norm": norm}
        rows = control_rows(batch, at, points, velocities, control, factor / factor.sum(), stats)
        return some_steps(batch.key, rows, num_matched)

    def loss(params: Any, base_params: Any, rows: ControlRows, temperature: Array) -> Terms:
        return regress(drift, params, rows)

    return Objective(loss=loss, prepare=prepare, needs_base=True, **clip_state(clip))
