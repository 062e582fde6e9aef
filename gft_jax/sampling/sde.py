"""Sampling by a stochastic differential equation with the marginals of a flow."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from gft_jax.conditions import check_rows
from gft_jax.diffusions import Diffusion
from gft_jax.drifts import as_sde_drift, evaluate
from gft_jax.sampling import time_grids
from gft_jax.sampling.arguments import as_data, checked_states
from gft_jax.sampling.chunks import in_chunks
from gft_jax.sampling.row_keys import row_keys
from gft_jax.sampling.steps import evaluations_per_step
from gft_jax.types import Drift


class SdeSample(NamedTuple):
    """End points of an SDE. Counts and status are scalars, with ``chunk_size`` ``[batch]``, those of the chunk."""

    x: Float[Array, "batch *event"]
    """State at t1; meaningless where ``succeeded`` is False."""
    trajectory: Float[Array, "num_times batch *event"] | None
    """States at the times of the grid, if asked for."""
    times: Float[Array | np.ndarray, "num_times"] | None
    """Flow times of the trajectory, in NumPy: those of the grid."""
    num_evaluations: Int[Array, "*rows"]
    """Number of evaluations of the drift on the whole batch (NFE); the score is evaluated as often, but not on
    steps that touch flow time 0 or 1."""
    succeeded: Bool[Array, "*rows"]
    """Whether x is finite."""


def sample_sde(
    drift: Drift,
    params: Any,
    x0: Real[Array | np.ndarray, "batch *event"] | Sequence[Any],
    key: Key[Array, "*rows"],
    *,
    score: Drift,
    diffusion: Diffusion,
    cond: Any = None,
    t0: float | None = None,
    t1: float | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | Array | None = None,
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    save_steps: bool = False,
    chunk_size: int | None = None,
    progress: bool = False,
) -> SdeSample:
    """Draw of X at t1 from ``dX = (v + (g^2 / 2) score) dt + g dW``, ``X(t0) = x0``, forwards in time.

    With the score of the flow the law of X at every time is that of the ODE ``dx/dt = v``, for every noise level
    g(t); what g changes is how X at one time depends on X at another, and how errors of v and score show.

    The ends of time: a memoryless g is infinite at t = 0, and the score of most paths is singular at t = 1. So on a
    step that begins at flow time 0 or ends at 1, X follows the ODE of v, which has the same marginals; score and
    noise act on the steps between. g is not evaluated at 0 and 1, nor the score. On a grid from 0 to 1 that takes at
    least three steps. Between the ends the steps must be short against the time in which score and noise change X:
    near t = 0 a memoryless g forgets X within a time of about t, which the second of equal steps just resolves.
    The drift itself is evaluated at t0, and by Heun's method at t1 too: take t1 below 1 where the velocity is singular
    there, as on the variance-preserving path, or Heun's samples are NaN.

    Solvers: Euler-Maruyama (``diffrax.Euler()``) of weak order 1, and Heun's method (``diffrax.Heun()``), which
    evaluates twice a step and is of weak order 2 *because g depends on t alone*: the moments of X at t1 err by
    O(h^2) for smooth v, score and g. (In general it is of weak order 1, and of the Stratonovich equation, which
    here is the Ito equation.) The strong order of both is 1. From t = 0 a memoryless g is not smooth on the scale
    of the first steps; on a Gaussian flow along the linear path Heun's method then showed an order of 1.75 to 1.85.

    The noise of a row comes from its own key alone: from ``fold_in(key, k)`` in step k of the grid. Neither chunks nor
    devices nor batch mates change it. A diverged sample never raises: read ``succeeded``. The result is
    differentiable in params, x0 and cond in reverse mode; all steps are then kept in memory.

    Under jit, everything but params, x0, key and cond is static. Without jit, repeated calls compile again unless
    drift, score and diffusion are the same objects.

    Args:
        drift: the velocity field v.
        params: its parameters, and those of the score.
        x0: states at t0, ``[batch, *event]``, not empty; half precision and integers become float32.
        key: one typed key for each row ``[batch]``, or a single one, of which row i takes ``fold_in(key, i)``.
        score: ``grad_x log p_t(x)`` in the form of a drift, with the same params: a head of the same network, or
            `gft_jax.drifts.as_score` of the velocity, where that holds. (One evaluation of a network that both
            need is shared by the compiler.)
        diffusion: noise level g(t) by flow time, see `gft_jax.diffusions`.
        cond: condition of the rows, a pytree of ``[batch, ...]``, or None.
        t0: flow time at the start, in [0, 1], by default 0.
        t1: flow time at the end, in [0, 1], by default 1; later than t0.
        num_steps: number of equal steps, by default 100.
        times: instead of t0, t1 and num_steps a whole grid ``[num_steps + 1]``, strictly increasing; see
            `gft_jax.sampling.time_grids`.
        solver: ``diffrax.Euler()`` or ``diffrax.Heun()``.
        save_steps: whether to return the states at all times of the grid.
        chunk_size: for more rows than fit into memory: they are sampled this many at a time, in a loop on the host,
            with the same results, which are NumPy arrays.
        progress: whether to show a bar of the rows, if in chunks.

    Raises:
        ValueError: if x0 is empty, has no batch axis or is not real; conditions do not have one row for each of x0;
            the grid is out of range, not increasing, traced, given in two ways or without a step that has noise; the
            solver is another one; keys are not typed, or neither one nor one a row; progress is asked for without
            chunks, or chunks under jit; drift, score or diffusion return another shape, or diffusion is no function.

    Source: arXiv:2011.13456 (Song et al.) and arXiv:2303.08797 (Albergo et al.) for the equation; weak order of
    Heun's method with additive noise: Kloeden and Platen, "Numerical solution of stochastic differential equations",
    chapter 15.
    """
    x0 = checked_states("x0", x0)
    check_rows("cond", cond, len(x0))
    if not isinstance(solver, diffrax.Euler | diffrax.Heun):
        raise ValueError(
            f"solver must be diffrax.Euler() (Euler-Maruyama) or diffrax.Heun(), got {type(solver).__name__}: the weak "
            "order of others is not known here."
        )
    if progress and chunk_size is None:
        raise ValueError("progress is by chunks here; give chunk_size, or leave progress out.")
    dtype = jnp.promote_types(jnp.result_type(x0), jnp.float32)
    grid = time_grids.resolve(times, t0, t1, num_steps, dtype)
    if grid[0] > grid[-1]:
        raise ValueError(f"the SDE runs forwards in time, t0 < t1, got a grid from {grid[0]} to {grid[-1]}.")
    has_noise = (grid[:-1] > 0) & (grid[1:] < 1)
    if not has_noise.any():
        raise ValueError(
            f"no step of the grid {grid.tolist()} has noise, since all touch flow time 0 or 1: take at least three "
            "steps from 0 to 1, or sample_ode."
        )

    data = as_data(params)

    def integrate(rows: tuple[Any, Any, Any]) -> SdeSample:
        x, keys, row_cond = rows
        trajectory = _integrate(
            (drift, score, diffusion),
            solver,
            save_steps,
            data,
            jnp.asarray(x, dtype),
            keys,
            row_cond,
            jnp.asarray(grid),
            jnp.asarray(has_noise),
        )
        x1 = trajectory[-1]
        num_evaluations = jnp.asarray(evaluations_per_step(solver)[0] * len(has_noise), jnp.int32)
        return SdeSample(
            x1, trajectory if save_steps else None, None, num_evaluations, jnp.isfinite(x1).all()
        )

    rows = (x0, row_keys(key, len(x0)), cond)
    axes = SdeSample(x=0, trajectory=1, times=None, num_evaluations=0, succeeded=0)  # pyright: ignore
    sample = integrate(rows) if chunk_size is None else in_chunks(integrate, rows, chunk_size, axes, progress)
    return sample._replace(times=grid) if save_steps else sample


@eqx.filter_jit
def _integrate(
    functions: tuple[Drift, Drift, Diffusion],
    solver: diffrax.AbstractSolver,
    save_steps: bool,
    params: Any,
    x0: Array,
    keys: Array,
    cond: Any,
    grid: Array,
    has_noise: Array,
) -> Array:
    """States ``[num_times, batch, *event]`` at the times of the grid, or ``[1, batch, *event]`` at its end."""
    drift, score, diffusion = functions
    sde_drift = as_sde_drift(drift, score, diffusion)

    def velocity(field: Drift, t: Any, x: Array) -> Array:
        return evaluate(field, params, t, x, cond).astype(x.dtype)

    def advance(x: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array | None]:
        index, start, end, with_noise = step

        def by(terms: Any) -> Array:
            state = solver.init(terms, start, end, x, None)
            return solver.step(terms, start, end, x, None, state, made_jump=False)[0]

        def stochastic() -> Array:
            def increment(key: Array) -> Array:
                return jax.random.normal(jax.random.fold_in(key, index), x.shape[1:], x.dtype)

            noise = jnp.sqrt(end - start) * jax.vmap(increment)(keys)

            def level(t: Any, x: Array, args: Any) -> lineax.DiagonalLinearOperator:
                return lineax.DiagonalLinearOperator(jnp.full_like(x, diffusion(t[None])[0]))

            return by(
                diffrax.MultiTerm(
                    diffrax.ODETerm(lambda t, x, args: velocity(sde_drift, t, x)),
                    diffrax.ControlTerm(level, lambda start, end: noise),
                )
            )

        def deterministic() -> Array:
            return by(diffrax.ODETerm(lambda t, x, args: velocity(drift, t, x)))

        x = jax.lax.cond(with_noise, stochastic, deterministic)
        return x, x if save_steps else None

    steps = (jnp.arange(len(has_noise)), grid[:-1], grid[1:], has_noise)
    end, states = jax.lax.scan(advance, x0, steps)
    return end[None] if states is None else jnp.concatenate([x0[None], states])
