"""Sampling by an average velocity: one evaluation a step, and exact steps if the average is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from gft_jax.conditions import check_rows
from gft_jax.drifts import evaluate_average
from gft_jax.drifts.two_times import check_two_times
from gft_jax.sampling import time_grids
from gft_jax.sampling.arguments import as_data, checked_states
from gft_jax.sampling.chunks import in_chunks
from gft_jax.types import TwoTimeDrift


class AverageSample(NamedTuple):
    """End points of steps by an average velocity, and what they cost.

    With ``chunk_size`` the count and ``succeeded`` are ``[batch]``: those of the row's chunk.
    """

    x: Float[Array, "batch *event"]
    """State at t1."""
    trajectory: Float[Array, "num_saved batch *event"] | None
    """States at all times of the grid, if asked for."""
    times: Float[Array | np.ndarray, "num_saved"] | None
    """Flow times of the trajectory."""
    num_evaluations: Int[Array, "*rows"]
    """Number of evaluations of the drift on the whole batch (NFE): the number of steps."""
    succeeded: Bool[Array, "*rows"]
    """Whether x is finite."""


def sample_average(
    drift: TwoTimeDrift,
    params: Any,
    x0: Real[Array | np.ndarray, "batch *event"] | Sequence[Any],
    *,
    cond: Any = None,
    t0: float | None = None,
    t1: float | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | Array | None = None,
    save_steps: bool = False,
    chunk_size: int | None = None,
    progress: bool = False,
) -> AverageSample:
    """Samples of a flow by its average velocity: ``x <- x + (s - t) u(t, s, x)`` over the steps (t, s) of a grid.

    Each step costs one evaluation, and is the flow's own if u is its average velocity: then any grid ends at the same
    points, and one step, ``x0 + u(0, 1, x0)``, is enough. For a trained u more steps correct what one alone misses.

    Under jit, everything but params, x0 and cond is static. Without jit, repeated calls compile again unless ``drift``
    is the same object.

    Args:
        drift: the average velocity, see `gft_jax.drifts.two_times`.
        params: its parameters.
        x0: states at t0, ``[batch, *event]``, not empty. The state keeps this dtype, but half precision and integers
            are moved (and returned) in float32.
        cond: condition of the rows, a pytree of ``[batch, ...]``, or None.
        t0: flow time at the start, in [0, 1], by default 0.
        t1: flow time at the end, in [0, 1], by default 1; later than t0.
        num_steps: number >= 1 of equal steps, by default 1.
        times: instead of t0, t1 and num_steps a whole grid ``[num_steps + 1]`` from t0 to t1, strictly increasing in
            [0, 1]; see `gft_jax.sampling.time_grids`.
        save_steps: whether the trajectory is x0 and the state after every step.
        chunk_size: for more rows than fit into memory: they are moved this many at a time, in a loop on the host, and
            the results are NumPy arrays.
        progress: whether to show a bar of the rows, if in chunks.

    Raises:
        ValueError: for a drift without a second time; if x0 is empty, has no batch axis or is not real; conditions do
            not have one row for each of x0; times are out of range, not increasing, traced, or given in two ways;
            num_steps or chunk_size is no positive integer; chunks are asked for under jit; or the drift does not return
            the shape of x0.

    Source: Geng et al., arXiv:2505.13447, algorithm 2.
    """
    check_two_times(drift)
    x0 = checked_states("x0", x0)
    check_rows("cond", cond, len(x0))
    dtype = jnp.promote_types(jnp.result_type(x0), jnp.float32)
    if num_steps is None and times is None:
        num_steps = 1
    grid = time_grids.resolve(times, t0, t1, num_steps, dtype)
    if grid[0] > grid[-1]:
        raise ValueError(
            f"an average velocity steps from a time t to a later s, and this grid runs from {grid[0]} to {grid[-1]}: "
            "for codes of data sample gft_jax.drifts.instantaneous(drift) by sample_ode."
        )
    data = as_data(params)

    def move(rows: tuple[Any, Any]) -> AverageSample:
        x, trajectory = _steps(
            drift, save_steps, jnp.asarray(grid), data, jnp.asarray(rows[0], dtype), rows[1]
        )
        num_evaluations = jnp.asarray(len(grid) - 1, jnp.int32)
        return AverageSample(x, trajectory, None, num_evaluations, jnp.isfinite(x).all())

    rows = (x0, cond)
    sample = move(rows) if chunk_size is None else in_chunks(move, rows, chunk_size, _ROW_AXES, progress)
    return sample._replace(times=grid) if save_steps else sample


_ROW_AXES = AverageSample(x=0, trajectory=1, times=0, num_evaluations=0, succeeded=0)  # pyright: ignore
"""Which axis of each field runs over the rows."""


@eqx.filter_jit
def _steps(
    drift: TwoTimeDrift, save_steps: bool, grid: Array, params: Any, x: Array, cond: Any
) -> tuple[Array, Array | None]:
    """The last state and, if asked for, all of them."""

    def step(x: Array, interval: tuple[Array, Array]) -> tuple[Array, Array | None]:
        t, s = interval
        x = x + (s - t) * evaluate_average(drift, params, t, s, x, cond).astype(x.dtype)
        return x, x if save_steps else None

    last, saved = jax.lax.scan(step, x, (grid[:-1], grid[1:]))
    return last, None if saved is None else jnp.concatenate([x[None], saved])
