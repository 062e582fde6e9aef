"""What a report card runs the drift for: paths from noise to samples, and its distance from the base."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.couplings import Coupling
from gft_jax.diffusions import Diffusion, memoryless
from gft_jax.drifts import as_score, as_sde_drift, evaluate
from gft_jax.evaluation.contents import in_steps
from gft_jax.evaluation.solves import failure, solve, solver_name
from gft_jax.metrics import kinetic_energy, path_kl, path_length, straightness, velocity_variance
from gft_jax.paths import Path
from gft_jax.sampling import sample_sde, time_grids
from gft_jax.sampling.chunks import in_chunks
from gft_jax.types import Drift

NUM_TIMES = 20
"""Flow times, at most, at which student and base are compared."""


class Rollout(NamedTuple):
    """Samples and the paths that led to them, on the host."""

    x: np.ndarray
    """``[num, *event]``."""
    trajectory: np.ndarray
    """``[num_steps + 1, num, *event]``."""
    times: np.ndarray
    """``[num_steps + 1]``."""
    num_evaluations: int
    path_length: np.ndarray
    """Of each path ``[num]``, as the next two; see `gft_jax.metrics`."""
    straightness: np.ndarray
    kinetic_energy: np.ndarray
    squared_deviation: np.ndarray
    """Of the velocity from its mean along the path, by path and step ``[num, num_steps]``."""

    @property
    def velocity_variance(self) -> np.ndarray:
        """By step ``[num_steps]``."""
        return self.squared_deviation.mean(axis=0)


def roll_out(
    name: str,
    drift: Drift,
    params: Any,
    x0: Array,
    cond: Any,
    solver: diffrax.AbstractSolver,
    num_steps: int,
    chunk_size: int | None,
    controller: diffrax.AbstractStepSizeController | None,
) -> Rollout:
    """Samples by the ODE with equal steps; or with those of a controller, looked at after as many equal intervals.

    Raises:
        ValueError: if the solve fails, with the number of samples that are not finite.
    """
    grid = time_grids.uniform(num_steps)
    sample = solve(drift, params, x0, cond, grid, solver, chunk_size, save_steps=True, controller=controller)
    failed = failure(sample)
    if failed is not None:
        raise ValueError(
            f"sampling from {name} by {solver_name(solver)} {in_steps(None if controller else num_steps)} failed: "
            f"{failed}. Nothing can be measured of them: take more steps, or find out why the drift diverges"
        )
    trajectory: Any = sample.trajectory
    times: Any = sample.times
    return Rollout(
        np.asarray(sample.x),
        np.asarray(trajectory),
        np.asarray(times),
        int(np.max(sample.num_evaluations)),
        *jax.device_get(_geometry(trajectory, times)),
    )


@jax.jit
def _geometry(trajectory: Any, times: Any) -> tuple[Array, ...]:
    return (
        path_length(trajectory),
        straightness(trajectory, times),
        kinetic_energy(trajectory, times),
        jax.vmap(lambda path: velocity_variance(path[:, None], times), in_axes=1)(trajectory),
    )


def squared_velocity_distances(
    drift: Drift, params: Any, base_params: Any, rollout: Rollout, cond: Any, chunk_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Flow times ``[num_times]``, and ``|v - v_base|^2`` there ``[num_times, num]``, on the paths of a rollout.

    The times are at most `NUM_TIMES`, evenly spread over those of the grid but the last, where the velocity of some
    paths is singular.
    """
    num_steps = len(rollout.times) - 1
    index = np.linspace(0, num_steps - 1, min(NUM_TIMES, num_steps)).round().astype(int)
    times = rollout.times[index]

    def of_rows(points: Any, row_cond: Any) -> Array:
        return _squared_distances(drift, params, base_params, times, points, row_cond)

    squares = _by_rows(of_rows, rollout.trajectory[index], cond, chunk_size)
    return times, np.asarray(squares, np.float64).T


@eqx.filter_jit
def _squared_distances(
    drift: Drift, params: Any, base_params: Any, times: Any, points: Any, cond: Any
) -> Array:
    def at(time_and_points: tuple[Array, Array]) -> Array:
        t, x = time_and_points
        difference = evaluate(drift, params, t, x, cond) - evaluate(drift, base_params, t, x, cond)
        return jnp.sum((difference**2).reshape(len(x), -1), axis=-1)

    return jax.lax.map(at, (jnp.asarray(times), jnp.asarray(points))).T


def _by_rows(
    function: Callable[[Any, Any], Array], points: Any, cond: Any, chunk_size: int | None
) -> Array | np.ndarray:
    """What a function of points on paths ``[num_times, num, ...]`` and conditions gives, ``[num, ...]``, by chunks."""
    if chunk_size is None:
        return function(points, cond)
    rows = (np.moveaxis(np.asarray(points), 1, 0), cond)
    return in_chunks(lambda part: function(jnp.moveaxis(part[0], 0, 1), part[1]), rows, chunk_size, 0, False)


def path_kl_by_row(
    drift: Drift,
    score: Drift | None,
    params: Any,
    base_params: Any,
    x0: Array,
    key: Key[Array, ""],
    cond: Any,
    path: Path | None,
    coupling: Coupling | None,
    diffusion: Diffusion | None,
    num_steps: int,
    chunk_size: int | None,
) -> tuple[np.ndarray, int]:
    """Share of each path of the student's SDE in its relative entropy to the base's ``[num]``, and the NFE.

    Raises:
        ValueError: where the score is not given and does not follow from the velocity, there is no noise level, no step
            has noise, or the SDE diverges.
    """
    if score is None:
        if path is None:
            raise ValueError("it needs the path that drift and base were trained on, or their score")
        score = as_score(drift, path, coupling=coupling)
    if diffusion is None:
        if path is None:
            raise ValueError("without a path there is no memoryless noise level: give the diffusion")
        diffusion = memoryless(path)
    sample = sample_sde(
        drift,
        params,
        x0,
        key,
        score=score,
        diffusion=diffusion,
        cond=cond,
        num_steps=num_steps,
        save_steps=True,
        chunk_size=chunk_size,
    )
    if not np.all(sample.succeeded):
        num_bad = int(jnp.sum(~jnp.isfinite(sample.x).reshape(len(sample.x), -1).all(axis=1)))
        raise ValueError(f"the SDE diverged: {num_bad} of {len(sample.x)} samples are not finite")
    sde_drift = as_sde_drift(drift, score, diffusion)
    trajectory: Any = sample.trajectory
    times: Any = sample.times

    def of_rows(points: Any, row_cond: Any) -> Array:
        return path_kl(sde_drift, params, sde_drift, base_params, points, times, diffusion, row_cond)

    rows = np.asarray(_by_rows(of_rows, trajectory, cond, chunk_size), np.float64)
    num_bad = int(np.sum(~np.isfinite(rows)))
    if num_bad:
        raise ValueError(f"the relative entropy of {num_bad} of {len(rows)} paths is not finite")
    return rows, int(np.max(sample.num_evaluations))
