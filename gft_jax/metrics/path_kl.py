"""Relative entropy of the laws of two processes on path space."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gft_jax.diffusions import Diffusion
from gft_jax.drifts import evaluate
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
    Maruyama on this grid the mean is unbiased, and against continuous time it is off by O(h).

    Steps that begin at flow time 0 or end at 1 are left out, as `gft_jax.sampling.sample_sde` has no noise there: two
    processes without noise have a finite relative entropy only if they are equal. So the number is that of the
    times between, and depends on the grid where the integrand grows towards an end.

    Args:
        sde_drift: b, see `gft_jax.drifts.as_sde_drift`.
        params: its parameters.
        other_drift: b'.
        other_params: its parameters.
        trajectory: paths of P, ``[num_times, batch, *event]``, with ``save_steps`` of `gft_jax.sampling.sample_sde`.
        times: their flow times, increasing.
        diffusion: the noise level g(t) of both, positive on the steps that count.
        cond: conditions of the rows, or None; the same for both.

    Raises:
        ValueError: if times and trajectory do not match, times do not increase, or no step has noise.

    Source: Girsanov's theorem, as in Oksendal, "Stochastic differential equations", section 8.6.
    """
    grid = np.asarray(times, np.float64)
    if grid.shape != (len(trajectory),) or len(grid) < 2 or np.any(np.diff(grid) <= 0):
        raise ValueError(
            f"times must increase, one for each of the {len(trajectory)} states of the trajectory, got shape "
            f"{grid.shape}"
        )
    steps = np.flatnonzero((grid[:-1] > 0) & (grid[1:] < 1))
    if not len(steps):
        raise ValueError(
            "all steps touch flow time 0 or 1, where there is no noise: take at least three steps from 0 to 1"
        )
    paths = jnp.asarray(trajectory)

    def add(total: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, length, x = step
        difference = evaluate(sde_drift, params, t, x, cond) - evaluate(other_drift, other_params, t, x, cond)
        squared = jnp.sum((difference**2).reshape(x.shape[0], -1), axis=-1)
        return total + length * squared / (2 * diffusion(t[None])[0] ** 2), None

    starts, lengths = (
        jnp.asarray(values, paths.dtype) for values in (grid[:-1][steps], np.diff(grid)[steps])
    )
    none = jnp.zeros(paths.shape[1], paths.dtype)
    return jax.lax.scan(add, none, (starts, lengths, paths[steps]))[0]
