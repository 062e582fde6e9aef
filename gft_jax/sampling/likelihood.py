"""Likelihood of data under a flow, by the instantaneous change of variables."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from gft_jax.conditions import check_rows
from gft_jax.drifts import evaluate
from gft_jax.sampling import time_grids
from gft_jax.sampling.arguments import checked_count, checked_states
from gft_jax.sampling.chunks import in_chunks
from gft_jax.sampling.ode import sample_ode
from gft_jax.sampling.row_keys import row_keys
from gft_jax.types import Drift


class Likelihood(NamedTuple):
    """Log-likelihood of each row. Counts and status are scalars or ``[batch]``, as in `OdeSample`."""

    log_likelihood: Float[Array, "batch"]
    """``log p1(x1)`` in nats, a density by the volume of the event space; meaningless where ``succeeded`` is False."""
    x0: Float[Array, "batch *event"]
    """Code of x1: where its trajectory starts at t0."""
    num_evaluations: Int[Array, "*rows"]
    """Number of evaluations of the drift, each with its derivatives along all probes."""
    succeeded: Bool[Array, "*rows"]
    """Whether the solver reached t0 with a finite state, from which the source has a finite log-density."""
    result: diffrax.RESULTS
    """Diffrax's own verdict."""


class Hutchinson(NamedTuple):
    """Estimate of the divergence from random directions: ``div v = E e . (dv/dx) e`` for ``E e e^T = I``."""

    key: Key[Array, "*rows"]
    """One typed key for each row ``[batch]``, or a single one, of which row i takes ``fold_in(key, i)``."""
    num_probes: int = 1
    """Directions drawn for each row, >= 1; the variance falls as 1 / num_probes."""
    draw: Callable[..., Array] = jax.random.rademacher
    """``(key, shape, dtype)`` -> independent components of mean 0 and variance 1: ``jax.random.rademacher`` (of the
    least variance: ``sum_{i<j} (J_ij + J_ji)^2``, J the Jacobian) or ``jax.random.normal`` (and ``2 sum_i J_ii^2``
    more)."""


def standard_normal(x: Float[Array, "batch *event"]) -> Float[Array, "batch"]:
    """Log-density of N(0, I) at each row, in nats."""
    rows = x.reshape(x.shape[0], -1)
    return -0.5 * jnp.sum(rows**2, axis=1) - rows.shape[1] / 2 * math.log(2 * math.pi)


def log_likelihood(
    drift: Drift,
    params: Any,
    x1: Real[Array | np.ndarray, "batch *event"] | Sequence[Any],
    *,
    cond: Any = None,
    hutchinson: Hutchinson | None = None,
    source_log_density: Callable[[Array], Array] = standard_normal,
    t0: float | None = None,
    t1: float | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | Array | None = None,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    steps_by_row: bool = False,
    max_steps: int = 4096,
    chunk_size: int | None = None,
    progress: bool = False,
) -> Likelihood:
    """Log-likelihood ``log p1(x1) = log p0(x0) - int_t0^t1 div v(t, x_t) dt`` along the ODE of v, from t1 back to t0.

    The divergence is exact by default, from one derivative for each dimension of the event (all at once in memory:
    ``dimensions x batch`` events), or estimated from a few random directions, the same along the whole trajectory.

    What the estimate is unbiased for: at fixed steps the log-likelihood that the exact divergence gives with the same
    steps, since directions do not touch the trajectory. Adaptive steps depend on the directions, within their
    tolerance. The likelihood itself (``exp``) is biased upwards. Neither is free of the error of the solver; with
    few steps ``log p1`` is of no normalised density, so report it at a tolerance at which it no longer moves.

    Differentiable in params, x1 and cond in reverse mode. A failed solve never raises: read ``succeeded``.

    Args:
        drift: the velocity field.
        params: its parameters.
        x1: data ``[batch, *event]`` at t1, not empty; half precision becomes float32.
        cond: condition of the rows, a pytree of ``[batch, ...]``, or None: then it is ``log p1(x1 | cond)``.
        hutchinson: None for the exact divergence, or how to estimate it.
        source_log_density: log-density in nats of the source at t0: ``[batch, *event]`` -> ``[batch]``.
        t0: flow time of the source, by default 0.
        t1: flow time of the data, by default 1; take it below 1 where the velocity is singular there.
        num_steps: number of equal steps; by default steps adapt to tolerances of 1e-5, to the whole batch.
        times: instead of t0, t1 and num_steps a whole grid, *strictly decreasing* from data to source.
        solver: see `sample_ode`.
        stepsize_controller: an adaptive controller; num_steps then sets only the first step that is tried.
        steps_by_row: whether the controller looks at each row alone.
        max_steps: largest number of steps with a controller.
        chunk_size: for more rows than fit into memory, see `sample_ode`.
        progress: whether to show a bar: of flow time, or of rows if in chunks.

    Raises:
        ValueError: for x1, conditions or an option that `sample_ode` refuses; times that do not decrease, or t1 <=
            t0; what is no `Hutchinson`, or has fewer than one probe; keys that are not typed, or neither one nor one
            a row; a source log-density of another shape.

    Source: Chen et al., "Neural ordinary differential equations", arXiv:1806.07366, theorem 1; random directions:
    Grathwohl et al., "FFJORD", arXiv:1810.01367, eq. 8.
    """
    x1 = checked_states("x1", x1)
    check_rows("cond", cond, len(x1))
    grid = time_grids.resolve(times, t0, t1, num_steps, np.float64)
    if times is None:
        last, first = map(float, grid[[0, -1]])
        interval: dict[str, Any] = {"t0": first, "t1": last, "num_steps": num_steps}
    else:
        first, last = grid[[0, -1]]
        interval = {"times": times}
    if first < last:
        raise ValueError(
            f"the likelihood runs from data to source, backwards in flow time: got {first} to {last}."
        )
    if stepsize_controller is None and times is None and num_steps is None:
        stepsize_controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    if hutchinson is not None:
        if not isinstance(hutchinson, Hutchinson):
            raise ValueError(f"hutchinson must be Hutchinson(key) or None, got {hutchinson!r}.")
        hutchinson = hutchinson._replace(num_probes=checked_count("num_probes", hutchinson.num_probes))
    dtype = jnp.promote_types(jnp.result_type(x1), jnp.float32)
    event_shape = np.shape(x1)[1:]

    def solve(rows: tuple[Any, Any, Any]) -> Likelihood:
        x, row_cond, keys = rows
        x = jnp.asarray(x, dtype)
        probes = None if hutchinson is None else _probes(hutchinson, keys, event_shape, dtype)
        state = jnp.concatenate([x.reshape(len(x), -1), jnp.zeros((len(x), 1), dtype)], axis=1)
        end = sample_ode(
            jax.tree_util.Partial(_augmented, drift, event_shape),
            params,
            state,
            cond=(row_cond, probes),
            solver=solver,
            stepsize_controller=stepsize_controller,
            steps_by_row=steps_by_row,
            max_steps=max_steps,
            progress=progress and chunk_size is None,
            **interval,
        )
        x0 = end.x[:, :-1].reshape(x.shape)
        at_source = source_log_density(x0)
        if at_source.shape != (len(x),):
            raise ValueError(
                f"source_log_density must return one value a row, shape {(len(x),)}, got {at_source.shape}."
            )
        # Integrated from t1 to t0, the divergence carries its sign.
        total = at_source + end.x[:, -1]
        finite = jnp.isfinite(total)
        succeeded = end.succeeded & (finite if end.succeeded.ndim else finite.all())
        return Likelihood(total, x0, end.num_evaluations, succeeded, end.result)

    keys = None if hutchinson is None else row_keys(hutchinson.key, len(x1))
    rows = (x1, cond, keys)
    return solve(rows) if chunk_size is None else in_chunks(solve, rows, chunk_size, _ROW_AXES, progress)


def bits_per_dimension(
    log_likelihood: Float[Array | np.ndarray, "batch"], num_dimensions: int, *, bin_width: float = 1.0
) -> Float[Array, "batch"]:
    """Negative log-likelihood in bits per dimension, ``-log2 p(x) / D - log2(bin_width)``, of each row.

    The convention for quantised data: integer levels are dequantised by adding noise uniform on [0, 1) and then
    scaled; bin_width is the width of one level *in the units of x*. For 256 grey levels mapped to [-1, 1], with
    ``x = (level + u) / 128 - 1``, it is 2 / 256, and the offset ``-log2(bin_width)`` 7 bits; for [0, 1] it is
    1 / 256 and 8 bits. The mean over u is then an upper bound on the bits per dimension of the integer levels.
    With bin_width 1 it is the negative log-density itself, in bits, and its value moves with the unit of x.

    Args:
        log_likelihood: in nats, ``[batch]``, of whole events.
        num_dimensions: number D of values in an event, >= 1.
        bin_width: width of one quantisation level in the units of x, > 0.

    Raises:
        ValueError: for numbers out of range.

    Source: Theis, van den Oord, Bethge, "A note on the evaluation of generative models", arXiv:1511.01844, section 3.1.
    """
    if num_dimensions < 1 or not 0 < bin_width < math.inf:
        raise ValueError(
            f"num_dimensions must be >= 1 and bin_width positive and finite, got {num_dimensions} and {bin_width}."
        )
    return -jnp.asarray(log_likelihood) / (num_dimensions * math.log(2)) - math.log2(bin_width)


_ROW_AXES = Likelihood(log_likelihood=0, x0=0, num_evaluations=0, succeeded=0, result=0)  # pyright: ignore


def _augmented(
    drift: Drift, event_shape: tuple[int, ...], params: Any, t: Array, state: Array, conds: Any
) -> Array:
    """Velocity of ``[x, integral of the divergence]``, flat in each row."""
    cond, probes = conds
    x = state[:, :-1].reshape(-1, *event_shape)
    velocity, derivative = jax.linearize(lambda x: evaluate(drift, params, t, x, cond), x)
    if probes is None:
        size = math.prod(event_shape)
        # One direction for each coordinate, the same in all rows: a row's velocity depends on that row alone.
        directions = jnp.broadcast_to(
            jnp.eye(size, dtype=x.dtype).reshape(size, 1, *event_shape), (size, *x.shape)
        )
    else:
        directions = jnp.moveaxis(probes, 1, 0)
    along = directions * jax.vmap(derivative)(directions)
    divergence = jnp.sum(along.reshape(len(along), len(x), -1), axis=(0, 2))
    return jnp.concatenate([velocity.reshape(len(x), -1), divergence[:, None]], axis=1)


def _probes(hutchinson: Hutchinson, keys: Array, event_shape: tuple[int, ...], dtype: Any) -> Array:
    """Directions ``[batch, num_probes, *event]``, scaled so that the sum over probes estimates the divergence."""
    draw = functools.partial(hutchinson.draw, shape=(hutchinson.num_probes, *event_shape), dtype=dtype)
    return jax.vmap(draw)(keys) / math.sqrt(hutchinson.num_probes)
