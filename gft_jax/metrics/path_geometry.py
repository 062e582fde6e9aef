"""Geometry of sampling trajectories: how long, how fast and how straight they are.

All but the normalised path energy run under jit. They take a trajectory ``[num_steps + 1, batch, *event]``, the
start included, and where it matters its flow times ``[num_steps + 1]``, as `sampling.sample_ode` returns them with
``save_steps``. The velocity in a step is ``(x_{k+1} - x_k) / (t_{k+1} - t_k)``: for Euler's method the drift
itself, for other solvers its mean over the step. A path that leaves the finite numbers has a value that is not
finite: count these before averaging. Steps of NumPy arrays are taken in their own precision, before JAX (without 64
bits) makes float32 of them: far from the origin, states in float32 have lost their steps.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gft_jax.metrics.rows import check_array, flat_rows

Trajectory = Float[Array | np.ndarray, "points batch *event"]
Times = Float[Array | np.ndarray, "points"]


def path_length(trajectory: Trajectory) -> Float[Array, "batch"]:
    """Length of each sampling path, ``sum_k |x_{k+1} - x_k|``, the Euclidean norm taken over the whole event.

    In the unit of the data; its mean over samples is the mean path length. Bias: the length of the polygon, which
    is below that of the smooth path by a relative ``O(num_steps^-2)``; compare at equal numbers of steps.

    Args:
        trajectory: states at all times, the start included, ``[num_steps + 1, batch, *event]``, at least two.

    Raises:
        ValueError: for fewer than two states, or what is no array.
    """
    increments = _increments(trajectory)
    over_event = tuple(range(2, increments.ndim))
    return jnp.sum(jnp.sqrt(jnp.sum(increments**2, axis=over_event)), axis=0)


def pixel_path_length(trajectory: Trajectory) -> Float[Array, "batch"]:
    """Length of each path summed over pixels, ``sum_k sum_pixels |x_{k+1} - x_k|``, the norm over colours alone.

    The last axis of the event holds the colours. In the unit of the data; at least `path_length`, and at most the
    root of the number of pixels times it: the two are not to be compared. Some published path lengths are of this
    kind. Bias: as `path_length`.

    Args:
        trajectory: states at all times, the start included, ``[num_steps + 1, batch, *pixels, colours]``, at
            least two.

    Raises:
        ValueError: for fewer than two states, events without an axis, or what is no array.
    """
    check_array("trajectory", trajectory, "[num_steps + 1, batch, *pixels, colours]")
    if trajectory.ndim < 3:
        raise ValueError(
            f"trajectory must be [num_steps + 1, batch, *pixels, colours], got shape {trajectory.shape}"
        )
    increments = _increments(trajectory)
    over_pixels = tuple(range(2, increments.ndim - 1))
    return jnp.sum(jnp.sqrt(jnp.sum(increments**2, axis=-1)), axis=(0, *over_pixels))


def kinetic_energy(trajectory: Trajectory, times: Times) -> Float[Array, "batch"]:
    """Kinetic energy of each path, ``int |v|^2 dt = sum_k |x_{k+1} - x_k|^2 / |t_{k+1} - t_k|``.

    In the square of the unit of the data, the time being without unit. At least the squared distance of the two
    ends (for times from 0 to 1), with equality for straight lines at constant speed. Bias: exact for the polygon,
    below the smooth path by a relative ``O(num_steps^-2)``.

    Args:
        trajectory: states ``[num_steps + 1, batch, *event]``, at least two.
        times: flow times of the states, in order, forwards or backwards. Places at the end that repeat the last
            time and state add nothing.

    Raises:
        ValueError: for fewer than two states, another number of times, or what is no array.
    """
    velocity, duration = _velocities(trajectory, times)
    return jnp.sum(duration[:, None] * jnp.sum(velocity**2, axis=-1), axis=0)


def normalised_path_energy(energies: Float[Array | np.ndarray, "batch"], w2: float) -> float:
    """Normalised path energy, ``NPE = |E int |v|^2 dt - W2^2| / W2^2``: the relative excess over optimal transport.

    Without unit; 0 for a flow that transports the source optimally and straight. The absolute value hides a
    deficit: a flow that moves too little to reach the data also has a positive NPE. Bias: W2 of two sets of samples
    is above that of the laws (see `w2`), and an optimal flow shows the relative bias of ``W2^2``; near 0 the scatter of
    the mean energy comes out positive as well.

    Args:
        energies: `kinetic_energy` of each path ``[batch]``, for times from 0 to 1.
        w2: root Wasserstein-2 distance between source samples and held-out data, > 0. It does not depend on the
            flow: compute it once.

    Raises:
        ValueError: for no energies or energies that are not finite, and for a w2 that is not positive and finite.

    Source: Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal
    transport", arXiv:2302.00482.
    """
    if not (math.isfinite(w2) and w2 > 0):
        raise ValueError(f"w2 must be positive and finite, got {w2}")
    return float(abs(np.mean(flat_rows("energies", energies, least=1)) / w2**2 - 1))


def straightness(trajectory: Trajectory, times: Times) -> Float[Array, "batch"]:
    """Straightness of each path, ``int |x1 - x0 - v|^2 dt``: 0 for a straight line at constant speed.

    In the square of the unit of the data. It equals ``int |v|^2 dt - |x1 - x0|^2``, the energy that is wasted, and
    the variance in time of the velocity along the path (see `velocity_variance`). Over other times than 0 to 1, the
    mean velocity stands for ``x1 - x0``. Bias: low, as `kinetic_energy`.

    Args:
        trajectory: states ``[num_steps + 1, batch, *event]``, at least two.
        times: as for `kinetic_energy`.

    Raises:
        ValueError: for fewer than two states, another number of times, or what is no array.

    Source: Liu, Gong, Liu, "Flow straight and fast: learning to generate and transfer data with rectified flow",
    arXiv:2209.03003, section 2.2.
    """
    velocity, duration = _velocities(trajectory, times)
    deviation = velocity - _mean_velocity(velocity, duration)
    return jnp.sum(duration[:, None] * jnp.sum(deviation**2, axis=-1), axis=0)


def velocity_variance(trajectory: Trajectory, times: Times) -> Float[Array, "steps"]:
    """Squared deviation of the velocity from its mean along the path, by step, ``E |v_k - mean_k v|^2`` over paths.

    Its mean over time is ``E var_t v(t, x_t)``, the mean of `straightness` (for times from 0 to 1). The curve says
    where paths bend or change speed, and its `spearman` with time whether late (towards +1) or early (-1):

        curve, counts = velocity_variance(trajectory, times), np.diff(times) != 0
        spearman(times[1:][counts], curve[counts])

    (a step of no duration, such as of the places at the end of an adaptive solve, has nan and does not count). For
    straight paths the curve is rounding and its correlation means nothing. In the square of the unit of the data.
    (The `instantaneous_variance` is another thing: of a convergence curve.) A path that is not finite makes the whole
    curve so. Bias: low, as `kinetic_energy`.

    Args:
        trajectory: states ``[num_steps + 1, batch, *event]``, at least two; one step has variance 0.
        times: as for `kinetic_energy`.

    Raises:
        ValueError: for fewer than two states, another number of times, or what is no array.
    """
    velocity, duration = _velocities(trajectory, times)
    deviation = velocity - _mean_velocity(velocity, duration)
    curve = jnp.mean(jnp.sum(deviation**2, axis=-1), axis=-1)
    return jnp.where(duration > 0, curve, jnp.nan)


def _increments(trajectory: Trajectory) -> Array:
    check_array("trajectory", trajectory, "[num_steps + 1, batch, *event]")
    if trajectory.shape[0] < 2:
        raise ValueError(
            "trajectory must be [num_steps + 1, batch, *event] with at least two states, start included, "
            f"got shape {trajectory.shape}"
        )
    return _steps(trajectory)


def _steps(values: Array | np.ndarray) -> Array:
    if not isinstance(values, np.ndarray):
        return jnp.diff(values, axis=0)
    with np.errstate(invalid="ignore", over="ignore"):  # as on the device: what is not finite stays so
        return jnp.asarray(np.diff(values, axis=0))


def _velocities(trajectory: Trajectory, times: Times) -> tuple[Array, Array]:
    """Velocity ``[num_steps, batch, entries]`` and duration ``[num_steps]`` of each step."""
    check_array("trajectory", trajectory, "[num_steps + 1, batch, *event]")
    check_array("times", times, "[num_steps + 1]")
    if times.shape != trajectory.shape[:1]:
        raise ValueError(
            f"times must have shape {trajectory.shape[:1]}, one for each state of a trajectory of shape "
            f"{trajectory.shape}, got shape {times.shape}"
        )
    increments = _increments(trajectory)
    steps = _steps(times)
    increments = increments.reshape(*increments.shape[:2], -1)
    # A step of no duration that stays where it is has no velocity; one that moves has an infinite one.
    return jnp.where(increments == 0, 0, increments / steps[:, None, None]), jnp.abs(steps)


def _mean_velocity(velocity: Array, duration: Array) -> Array:
    return jnp.sum(duration[:, None, None] * velocity, axis=0) / jnp.sum(duration)
