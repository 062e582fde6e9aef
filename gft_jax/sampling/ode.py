"""Sampling by the ordinary differential equation of a drift, from noise to data or back, by Diffrax."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from gft_jax.conditions import check_rows
from gft_jax.drifts import evaluate
from gft_jax.sampling import time_grids
from gft_jax.sampling.arguments import as_data, check_known, checked_count, checked_states
from gft_jax.sampling.chunks import in_chunks
from gft_jax.sampling.steps import CountFreshSteps, GridSteps, evaluations_per_step
from gft_jax.types import Drift

_ADAPTIVE_START = 10
"""The first step that a controller tries is the interval divided by this, unless num_steps is given.

On trained flows at tolerances of 1e-2 to 1e-5, Dopri5 that starts at a hundredth needs one or two steps more for the
same error, and from a fifth on its errors grow; where a tenth is too long, it costs a rejected step.
"""


class OdeSample(NamedTuple):
    """End points of an ODE, and what the way there cost.

    Counts and status are scalars where all rows were integrated together, and ``[batch]`` where they were not: with
    ``steps_by_row`` one for each row, with ``chunk_size`` those of the row's chunk.
    """

    x: Float[Array, "batch *event"]
    """State at t1; meaningless where ``succeeded`` is False."""
    trajectory: Float[Array, "num_saved batch *event"] | None
    """States along the way, if asked for."""
    times: Float[Array | np.ndarray, "num_saved *rows"] | None
    """Flow times of the trajectory: those of ``save_at`` or of the grid, in NumPy; with ``save_steps`` and a controller
    those that it chose, ``[num_saved, batch]`` where rows chose their own steps, or chunks theirs."""
    num_evaluations: Int[Array, "*rows"]
    """Number of evaluations of the drift on the whole batch (NFE), rejected steps included."""
    succeeded: Bool[Array, "*rows"]
    """Whether the solver reached t1 and x is finite."""
    result: diffrax.RESULTS
    """Diffrax's own verdict, e.g. ``diffrax.RESULTS.max_steps_reached``."""


def sample_ode(
    drift: Drift,
    params: Any,
    x0: Real[Array | np.ndarray, "batch *event"] | Sequence[Any],
    *,
    cond: Any = None,
    t0: float | None = None,
    t1: float | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | Array | None = None,
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    steps_by_row: bool = False,
    save_at: Sequence[float] | np.ndarray | Array | None = None,
    save_steps: bool = False,
    max_steps: int = 4096,
    chunk_size: int | None = None,
    progress: bool = False,
) -> OdeSample:
    """Solution at t1 of ``dx/dt = v(t, x)`` with ``x(t0) = x0``: samples from noise, or codes of data backwards.

    Without a controller the solver takes num_steps equal steps, or those of a grid ``times``. With one, such as
    ``diffrax.PIDController(rtol=1e-4, atol=1e-4)``, the steps adapt, by default to the *whole batch*: one step size,
    from the root mean square of the scaled error over all its entries, so a row depends a little on its batch
    mates. With ``steps_by_row`` every row chooses its own steps and depends on nothing else, as if it were alone;
    the program then runs as long as the slowest row.

    A failed solve never raises: read ``succeeded``; x is meaningless where it is False. The result is
    differentiable in params, x0 and cond in reverse mode, with recursive checkpoints; evaluations in the backward
    pass are not counted.

    Under jit, everything but params, x0 and cond is static. Without jit, repeated calls compile again unless
    ``drift`` is the same object.

    Args:
        drift: the velocity field.
        params: its parameters.
        x0: states at t0, ``[batch, *event]``, not empty. The state keeps this dtype, but half precision and
            integers are integrated (and returned) in float32.
        cond: condition of the rows, a pytree of ``[batch, ...]``, or None.
        t0: flow time at the start, in [0, 1], by default 0. With t0=1 and t1=0, data are encoded into noise.
        t1: flow time at the end, in [0, 1], by default 1; different from t0.
        num_steps: number >= 1 of equal steps, by default 100. With a controller it sets only the first step that
            is tried, ``(t1 - t0) / num_steps``, and is 10 by default.
        times: instead of t0, t1 and num_steps a whole grid ``[num_steps + 1]`` from t0 to t1, strictly monotone in
            [0, 1]; see `gft_jax.sampling.time_grids`.
        solver: ``diffrax.Euler()``, an explicit Runge-Kutta method of Diffrax, or a HalfSolver of one.
        stepsize_controller: an adaptive controller of Diffrax, or None for the steps given.
        steps_by_row: whether an adaptive controller looks at each row alone.
        save_at: times of the trajectory between t0 and t1, in the order of integration, known at trace time.
            Between steps the solver interpolates: linearly for Euler, Midpoint, Heun and Ralston, to fourth
            order for Tsit5 and Dopri5.
        save_steps: whether the trajectory is x0 and the state after every step: one state for each time of the
            grid, or ``max_steps + 1`` with a controller, the unused ones at the end repeating x and t1 (so set
            max_steps with memory in mind).
        max_steps: largest number of steps, rejected ones included, with a controller.
        chunk_size: for more rows than fit into memory: they are integrated this many at a time, in a loop on the
            host, and the results are NumPy arrays. A result does not depend on the chunks, unless steps adapt to
            the whole batch, which then is the chunk (the last one filled up with copies of its last row).
        progress: whether to show a bar: of flow time, or of rows if in chunks.

    Raises:
        ValueError: if x0 is empty, has no batch axis or is not real; conditions do not have one row for each of x0;
            times are out of range, not monotone, traced, or given in two ways; num_steps, max_steps or chunk_size is
            no positive integer; the solver cannot be counted, or gives no error estimate where a controller needs
            one; the controller is not adaptive, or missing where rows should choose their steps; save_at is out of
            range or order, or given together with save_steps; chunks are asked for under jit; or the drift does not
            return the shape of x0.

    Source: P. Kidger, "On neural differential equations", arXiv:2202.02435 (Diffrax).
    """
    x0 = checked_states("x0", x0)
    check_rows("cond", cond, len(x0))
    max_steps = checked_count("max_steps", max_steps)
    if save_at is not None and save_steps:
        raise ValueError("save_at and save_steps are two ways to choose a trajectory; give one of them.")
    dtype = jnp.promote_types(jnp.result_type(x0), jnp.float32)
    _check_controller(solver, stepsize_controller, times, steps_by_row)
    if stepsize_controller is not None and num_steps is None:
        num_steps = _ADAPTIVE_START
    grid = time_grids.resolve(times, t0, t1, num_steps, dtype)
    if stepsize_controller is None:
        controller, max_steps = GridSteps(jnp.asarray(grid)), len(grid) - 1
    else:
        # Times in another precision than the state would change its dtype.
        controller = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, stepsize_controller
        )
    saved_times = None if save_at is None else _saved_times(save_at, grid)
    solve = functools.partial(
        _solve,
        drift,
        solver=solver,
        controller=CountFreshSteps(controller, len(grid) - 1),
        interval=grid[[0, -1]],
        save_at=saved_times,
        save_steps=save_steps,
        max_steps=max_steps,
        progress_meter=diffrax.TqdmProgressMeter()
        if progress and chunk_size is None
        else diffrax.NoProgressMeter(),
    )
    data = as_data(params)
    if save_steps and stepsize_controller is None:
        saved_times = grid

    def integrate(rows: tuple[Any, Any]) -> OdeSample:
        x, row_cond = jnp.asarray(rows[0], dtype), rows[1]
        sample = _solve_by_row(solve, data, x, row_cond) if steps_by_row else solve(data, x, row_cond)
        if chunk_size is None or sample.times is None or sample.times.ndim == 2:
            return sample
        # Chunks whose steps adapt to them save different times: one column for each row, to be joined like states.
        columns = jnp.broadcast_to(sample.times[:, None], (len(sample.times), len(x)))
        return sample._replace(times=columns)

    rows = (x0, cond)
    sample = (
        integrate(rows) if chunk_size is None else in_chunks(integrate, rows, chunk_size, _ROW_AXES, progress)
    )
    # The times of a solver that has failed are not those of the others: where they are known, they are not asked.
    return sample if saved_times is None else sample._replace(times=saved_times)


_ROW_AXES = OdeSample(x=0, trajectory=1, times=1, num_evaluations=0, succeeded=0, result=0)  # pyright: ignore
"""Which axis of each field runs over the rows."""


def _solve_by_row(solve: Callable[..., OdeSample], params: Any, x0: Array, cond: Any) -> OdeSample:
    """Each row as a batch of its own."""

    def solve_row(x0: Array, cond: Any) -> OdeSample:
        sample = solve(params, *jax.tree.map(lambda leaf: leaf[None], (x0, cond)))
        trajectory = None if sample.trajectory is None else sample.trajectory[:, 0]
        return sample._replace(x=sample.x[0], trajectory=trajectory)

    return jax.vmap(solve_row, out_axes=_ROW_AXES)(x0, cond)


def _solve(
    drift: Drift,
    params: Any,
    x0: Array,
    cond: Any,
    *,
    solver: diffrax.AbstractSolver,
    controller: CountFreshSteps,
    interval: np.ndarray,
    save_at: np.ndarray | None,
    save_steps: bool,
    max_steps: int,
    progress_meter: diffrax.AbstractProgressMeter,
) -> OdeSample:
    """All rows together."""
    t0, t1 = jnp.asarray(interval)
    saved = [diffrax.SubSaveAt(t1=True)]
    if save_steps:
        saved.append(diffrax.SubSaveAt(t0=True, steps=1))
    elif save_at is not None:
        saved.append(diffrax.SubSaveAt(ts=jnp.asarray(save_at)))
    solution = diffrax.diffeqsolve(
        # A Partial, unlike a closure, is equal to the one of the last call: no new compilation.
        diffrax.ODETerm(jax.tree_util.Partial(_velocity, drift)),
        solver,
        t0,
        t1,
        None,
        x0,
        args=(params, cond),
        saveat=diffrax.SaveAt(subs=saved, controller_state=True),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
        progress_meter=progress_meter,
    )
    states: Any = solution.ys
    state_times: Any = solution.ts
    controller_state: Any = solution.controller_state
    x, trajectory, times = states[0][0], None, None
    if len(saved) > 1:
        # Diffrax leaves the places of steps that were not needed at infinity.
        unused = jnp.isinf(state_times[1])
        trajectory = jnp.where(unused.reshape(unused.shape + (1,) * x.ndim), x, states[1])
        times = jnp.where(unused, t1, state_times[1])
    each, if_fresh = evaluations_per_step(solver)
    _, _, num_fresh = controller_state
    num_evaluations = each * solution.stats["num_steps"] + if_fresh * num_fresh
    return OdeSample(
        x=x,
        trajectory=trajectory,
        times=times,
        num_evaluations=jnp.asarray(num_evaluations, jnp.int32),
        succeeded=(solution.result == diffrax.RESULTS.successful) & jnp.isfinite(x).all(),
        result=solution.result,
    )


def _velocity(drift: Drift, t: Array, x: Array, args: Any) -> Array:
    params, cond = args
    return evaluate(drift, params, t, x, cond).astype(x.dtype)


def _saved_times(save_at: Sequence[float] | np.ndarray | Array, grid: np.ndarray) -> np.ndarray:
    """The times at which a trajectory is wanted, checked, in the dtype of the grid."""
    check_known(save_at=save_at)
    times = np.asarray(save_at, grid.dtype)
    t0, t1 = grid[0], grid[-1]
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"save_at must be a non-empty sequence of times, got shape {times.shape}.")
    if not (times.min() >= min(t0, t1) and times.max() <= max(t0, t1)):
        raise ValueError(
            f"save_at must lie between t0={t0} and t1={t1}, got times from {times.min()} to {times.max()}."
        )
    if np.any(np.diff(times) * (t1 - t0) < 0):
        raise ValueError(f"save_at must run from t0={t0} towards t1={t1}, got {times.tolist()}.")
    return times


def _check_controller(
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController | None,
    times: Any,
    steps_by_row: bool,
) -> None:
    evaluations_per_step(solver)
    if controller is None:
        if steps_by_row:
            raise ValueError(
                "steps_by_row needs an adaptive stepsize_controller, such as diffrax.PIDController; without one "
                "all rows take the same steps."
            )
        return
    name = type(solver).__name__
    if not isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        raise ValueError(
            f"stepsize_controller must be adaptive, got {type(controller).__name__}: for fixed steps leave it out "
            "and give num_steps or times."
        )
    if times is not None:
        raise ValueError(
            f"times fixes the steps and {type(controller).__name__} adapts them: give one of them."
        )
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"An adaptive controller needs an error estimate, which {name} does not give; use diffrax.Tsit5() or "
            f"diffrax.HalfSolver(diffrax.{name}())."
        )
