"""Solves of the ODE for an evaluation, and in what they fail."""

from typing import Any

import diffrax
import equinox as eqx
import numpy as np

from gft_jax.evaluation.arguments import Samples
from gft_jax.metrics.rows import LARGEST
from gft_jax.sampling import AverageSample, OdeSample, sample_ode
from gft_jax.types import Drift


def solve(
    drift: Drift,
    params: Any,
    x0: Samples,
    cond: Any,
    times: np.ndarray,
    solver: diffrax.AbstractSolver,
    chunk_size: int | None,
    *,
    save_steps: bool = False,
    controller: diffrax.AbstractStepSizeController | None = None,
) -> OdeSample:
    """The ODE along a grid, in one program; in several only by chunks, whose loop no program can hold.

    With a controller the steps are its own, and the grid is where the way is looked at.
    """
    grid = tuple(times.tolist())
    if chunk_size is None:
        return _solve(drift, params, x0, cond, grid, solver, save_steps, controller)
    return sample_ode(
        drift,
        params,
        x0,
        cond=cond,
        solver=solver,
        chunk_size=chunk_size,
        **_steps(grid, save_steps, controller),
    )


@eqx.filter_jit
def _solve(
    drift: Drift,
    params: Any,
    x0: Any,
    cond: Any,
    times: tuple[float, ...],
    solver: diffrax.AbstractSolver,
    save_steps: bool,
    controller: diffrax.AbstractStepSizeController | None,
) -> OdeSample:
    return sample_ode(drift, params, x0, cond=cond, solver=solver, **_steps(times, save_steps, controller))


def _steps(
    times: tuple[float, ...], save_steps: bool, controller: diffrax.AbstractStepSizeController | None
) -> dict[str, Any]:
    if controller is None:
        return {"times": times, "save_steps": save_steps}
    return {"stepsize_controller": controller, "save_at": times if save_steps else None}


def failure(sample: OdeSample | AverageSample) -> str | None:
    """None for a solve that succeeded with samples that can be measured, or in what it failed."""
    x = np.asarray(sample.x, np.float64).reshape(len(sample.x), -1)
    num_bad = int(np.sum(~np.isfinite(x).all(axis=1)))
    if num_bad:
        return f"{num_bad} of {len(x)} samples are not finite"
    if not np.all(sample.succeeded):
        return "the solver did not reach the end"
    num_far = int(np.sum((np.abs(x) > LARGEST).any(axis=1)))
    return (
        f"{num_far} of {len(x)} samples are beyond {LARGEST:g}, and their squares overflow"
        if num_far
        else None
    )


def solver_name(solver: diffrax.AbstractSolver) -> str:
    """Name of a solver, e.g. ``Tsit5`` or ``HalfSolver(Euler)``."""
    name = type(solver).__name__
    return f"{name}({solver_name(solver.solver)})" if isinstance(solver, diffrax.HalfSolver) else name
