"""Relative entropy of the laws of two processes on path space."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from gft_jax.conditions import check_rows
from gft_jax.diffusions import Diffusion
from gft_jax.drifts import evaluate
from gft_jax.drifts.stochastic import noise_level
from gft_jax.types import Drift


def path_kl(
    sde_drift: Drift,
    params: Any,
    other_drift: Drift,
    other_params: Any,
    trajectory: Float[Array | np.ndarray, "num_times batch *event"],
    times: Float[Array | np.ndarray, "num_points"],
    diffusion: Diffusion,
    cond: Any = None,
) -> Float[Array, "batch"]:
    """Share of each path in ``KL(P || P') = E_P int |b - b'|^2 / (2 g^2) dt``, in nats; its mean is the estimate.

    P is the law of ``dX = b dt + g dW`` and P' that of ``dX = b' dt + g dW`` from the same start (Girsanov's theorem).
    The paths must be those of P; only its marginals matter for the mean, since the sum is additive in time. The
    integral is the sum over the steps of the grid of the integrand at their beginning: for processes of Euler and
    Maruyama on this grid the mean is unbiased, and against continuous time it is off by O(h). The sum is taken in
    float32 at the least, whatever the dtype of the paths.

    Steps that begin at flow time 0 or end at 1 are left out, as `gft_jax.sampling.sample_sde` has no noise there: two
    processes without noise have a finite relative entropy only if they are equal. So the number is that of the
    times between, and depends on the grid where the integrand grows towards an end.

    A path that is not finite has a share that is not finite, and so would the mean: count such shares before you
    average, and do not drop them in silence, since they are of the paths that diverged.

    Args:
        sde_drift: b, see `gft_jax.drifts.as_sde_drift`.
        params: its parameters.
        other_drift: b'.
        other_params: its parameters.
        trajectory: paths of P, ``[num_times, batch, *event]``, with ``save_steps`` of `gft_jax.sampling.sample_sde`.
        times: their flow times, in [0, 1] and increasing, known at trace time.
        diffusion: the noise level g(t) of both, positive and finite on the steps that count. (Where g itself is
            traced its values cannot be checked, and a level of 0 gives shares that are infinite or NaN.)
        cond: conditions of the rows, or None; the same for both.

    Raises:
        ValueError: if times and trajectory do not match, times do not increase, leave [0, 1] or are traced, no step has
            noise, conditions do not have one row for each path, or diffusion is no function, of another shape or not
            positive.

    Source: Girsanov's theorem, as in Oksendal, "Stochastic differential equations", section 8.6.
    """
    paths = jnp.asarray(trajectory)
    if paths.ndim < 2:
        raise ValueError(f"trajectory must be [num_times, batch, *event], got shape {paths.shape}")
    check_rows("cond", cond, paths.shape[1])
    dtype = jnp.promote_types(paths.dtype, jnp.float32)
    steps, starts, lengths = _steps(times, len(paths), dtype)
    levels = _levels(diffusion, starts)

    def share(step: tuple[Array, Array, Array, Array]) -> Array:
        t, length, level, x = step
        difference = evaluate(sde_drift, params, t, x, cond) - evaluate(other_drift, other_params, t, x, cond)
        wide = difference.astype(jnp.promote_types(difference.dtype, dtype))
        return length * jnp.sum((wide**2).reshape(len(x), -1), axis=-1) / (2 * level**2)

    return jnp.sum(jax.lax.map(share, (starts, lengths, levels, paths[steps])), axis=0)


def _steps(times: Any, num_states: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, beginnings and lengths of the steps that have noise."""
    if isinstance(times, Tracer):
        raise ValueError(
            "times must be known at trace time, but jit, grad or vmap traces them: give the times of a sample_sde "
            "within the same function, or a NumPy array from outside"
        )
    grid = np.asarray(times, np.float64)
    if grid.shape != (num_states,) or len(grid) < 2 or not np.all(np.diff(grid) > 0):
        raise ValueError(
            f"times must increase, one for each of the {num_states} states of the trajectory, got shape "
            f"{grid.shape}"
        )
    if grid[0] < 0 or grid[-1] > 1:
        raise ValueError(f"times must lie in [0, 1], got times from {grid[0]} to {grid[-1]}")
    steps = np.flatnonzero((grid[:-1] > 0) & (grid[1:] < 1))
    if not len(steps):
        raise ValueError(
            "all steps touch flow time 0 or 1, where there is no noise: take at least three steps from 0 to 1"
        )
    return steps, grid[steps].astype(dtype), np.diff(grid)[steps].astype(dtype)


def _levels(diffusion: Diffusion, times: np.ndarray) -> Array:
    """Noise levels at the times, checked where they are known already."""
    with jax.ensure_compile_time_eval():
        levels = noise_level(diffusion, jnp.asarray(times))
    if not isinstance(levels, Tracer):
        known = np.asarray(levels)
        wrong = np.flatnonzero(~((known > 0) & np.isfinite(known)))
        if len(wrong):
            raise ValueError(
                f"the noise level must be positive and finite on all steps but those that touch flow time 0 or 1, but "
                f"diffusion gives {known[wrong[0]]} at flow time {times[wrong[0]]}: without noise two processes have "
                "a finite relative entropy only if they are equal"
            )
    return levels
