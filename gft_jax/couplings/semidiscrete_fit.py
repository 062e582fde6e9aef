"""Potentials of semi-discrete optimal transport between the law of a source and a dataset."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from gft_jax.couplings.base import (
    MAX_ROWS,
    check_source,
    mean_squared_distance,
    split_arrays,
    squared_distances,
)
from gft_jax.couplings.semidiscrete import MAX_HELD, SemidiscretePotentials, flat_rows, marks

NUM_SCALE_ROWS = 4096
"""Source rows from which the mean squared distance is taken."""
MEASURED = 40
"""The squared tolerance in standard errors of the squared marginal error."""
LEAST_MEASURED = 16_384
"""Source rows, at least, from which cost and marginal error are estimated."""


def fit_semidiscrete(
    key: Key[Array, ""],
    x1: Shaped[Array | np.ndarray, "..."],
    source: Callable[[Key[Array, "rows"]], tuple[Array, Any]],
    *,
    epsilon: float | int = 0.0,
    tolerance: float = 0.15,
    num_steps: int = 2000,
    batch_size: int = 1024,
) -> SemidiscretePotentials:
    """Potentials of the optimal transport plan between the law of a source and a dataset, each row of equal mass.

    The plan minimises ``E |x0 - x1|^2 + epsilon KL(P || law of x0 x uniform)`` under both marginals. Its potentials
    g_j maximise the dual ``mean_j g_j - E_x0 epsilon log mean_j exp((g_j - |x0 - x1_j|^2) / epsilon)``, and `choose`
    draws row j with probability proportional to ``exp((g_j - |x0 - x1_j|^2) / epsilon)``; at epsilon = 0 it is the row
    that maximises ``g_j - |x0 - x1_j|^2``: the space is cut into the Laguerre cells of the rows, and each has the
    probability 1 / num. Unlike the plans of batches, it knows no batch: there is no bias of batch size in its cost.

    The dual is ascended by Adam on fresh source rows at each step, while epsilon falls geometrically from the mean
    squared distance to what is asked for (or nearly 0) and the learning rate with it: coarse differences of the
    potentials first, fine ones last. Then the marginal error is estimated on other fresh rows, as the root of
    an unbiased estimate of its square. Their number is chosen such that this square has, where it is small, a
    standard error of at most ``tolerance^2 / 40``; so errors below a sixth of the tolerance are not told from 0.
    Never are they more than the rows of the fit, which cannot reach a square below ``num / (num_steps batch_size)``.

    It takes ``num_steps * batch_size * num`` distances, and ``batch_size * num`` of them are held at once. With the
    defaults, on one CPU core: 30 s for 4096 rows in the plane (marginal error 0.10 at epsilon = 0), 20 s for 1797
    images of 8x8 (0.07), 8 s for 512 of them (0.03).

    At epsilon = 0 no x0 is shared between rows: rows of data that coincide, and a source of few points, such as
    `gft_jax.pairing.rows_of` of a small sample, cannot have their marginal then, and need an epsilon.

    Args:
        key: of the source rows that are drawn for the fit.
        x1: dataset ``[num, *event]``.
        source: draws x0, each row from its own key, as `gft_jax.pairing.standard_normal` does: keys ``[rows]`` ->
            ``(x0 [rows, *event], conditions)``. The conditions are not looked at.
        epsilon: strength of the entropic term in units of the mean squared distance between x0 and x1, >= 0. The
            larger, the more rows an x0 may get, the higher the cost, and the easier the fit.
        tolerance: largest marginal error with which the fit counts as converged, in (0, 2).
        num_steps: steps of the ascent, >= 1. Four times as many about halve the marginal error.
        batch_size: source rows of a step, >= 1.

    Returns:
        Potentials; ``converged`` says whether they came within the tolerance, `require_converged` makes it an error.

    Raises:
        ValueError: for data that are empty, not floating-point or not finite, source rows of another shape or not
            finite, values out of range, and more than 2^28 distances in a step.

    Source: Genevay et al., "Stochastic optimization for large-scale optimal transport", arXiv:1605.08527; for flow
    matching Mousavi-Hosseini et al., "Flow matching with semidiscrete couplings", arXiv:2509.25519, whose equation 3.5
    is the estimate of the marginal error. The solver is ott-jax (arXiv:2201.12324), which is imported here, since it
    takes seconds; the schedule of epsilon is ours.
    """
    from gft_jax.couplings.dual_ascent import dual_ascent

    _check_dataset(x1)
    _check_numbers(epsilon, tolerance, num_steps, batch_size, len(x1))
    event_shape, points = tuple(x1.shape[1:]), flat_rows(x1)
    arrays, static = split_arrays(source)
    check_source(source, event_shape)
    # The standard error of the squared marginal error is (2 num)^(1/2) / num_rows where the error is small. That error
    # is not below num / (rows of the fit): as many rows as the fit has had always tell it from 0.
    wanted = math.ceil(MEASURED * math.sqrt(2 * len(x1)) / tolerance**2)
    num_rows = max(LEAST_MEASURED, min(wanted, num_steps * batch_size))
    rows_a_chunk = max(1, min(num_rows, MAX_HELD // max(points.shape)))

    def draw(arrays: Any, key: Key[Array, ""], num: int) -> Array:
        rows, _ = eqx.combine(arrays, static)(jax.random.split(key, num))
        return rows.reshape(num, -1).astype(points.dtype)

    # Dataset and arrays of the source are arguments: as constants they would be copied into the program.
    @jax.jit
    def scale_of(key: Key[Array, ""], points: Array, arrays: Any) -> tuple[Array, Array]:
        x0 = draw(arrays, key, NUM_SCALE_ROWS)
        return mean_squared_distance(x0, points), jnp.mean(x0, axis=0)

    @jax.jit
    def fit(
        keys: Key[Array, "2"], points: Array, arrays: Any, epsilon: Array, scale: Array, centre: Array
    ) -> SemidiscretePotentials:
        unit = jnp.sqrt(jnp.where(scale > 0, scale, 1))
        dual = dual_ascent(
            keys[0],
            points / unit,
            lambda key, num: draw(arrays, key, num) / unit,
            centre / unit,
            epsilon=epsilon,
            num_steps=num_steps,
            batch_size=batch_size,
        )
        dual = (dual - jnp.mean(dual)) * unit**2
        absolute = epsilon * unit**2
        chunks = jax.random.split(keys[1], -(-num_rows // rows_a_chunk))
        squared_error, cost = _measure(
            lambda key: draw(arrays, key, rows_a_chunk), chunks, dual, absolute, points
        )
        error = jnp.sqrt(jnp.maximum(squared_error, 0))
        converged = (error <= tolerance) & jnp.isfinite(cost)
        return SemidiscretePotentials(dual, marks(points), absolute, cost, error, converged)

    key_scale, *keys = jax.random.split(key, 3)
    scale, centre = scale_of(key_scale, points, arrays)
    if not np.isfinite(float(scale)):
        raise ValueError(
            "the source draws rows that are not finite, or so far from the data that squared distances overflow"
        )
    return fit(jnp.stack(keys), points, arrays, jnp.asarray(epsilon, points.dtype), scale, centre)


def _measure(
    draw: Callable[[Key[Array, ""]], Array],
    keys: Key[Array, "chunks"],
    dual: Float[Array, "num"],
    epsilon: Float[Array, ""],
    x1: Float[Array, "num size"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimate of ``num sum_j (p_j - 1/num)^2``, and the mean cost, from fresh source rows.

    With ``q_ij`` the probability that row i chooses j, the mean of ``q_ij q_kj`` over pairs i != k is ``p_j^2`` without
    bias; that over all pairs is not, and would count the noise of the rows as an error of the marginal.
    """
    num = len(x1)

    def law(score: Array) -> Array:
        return jax.lax.cond(
            epsilon > 0,
            lambda: jax.nn.softmax(score / epsilon, axis=1),
            lambda: jax.nn.one_hot(jnp.argmax(score, axis=1), num, dtype=score.dtype),
        )

    def add(sums: tuple[Array, Array, Array], key: Key[Array, ""]) -> tuple[tuple[Array, Array, Array], int]:
        x0 = draw(key)
        squared = squared_distances(x0, x1)
        chosen = law(dual - squared)
        here = jnp.sum(chosen, axis=0), jnp.sum(chosen**2, axis=0), jnp.sum(chosen * squared)
        return jax.tree.map(jnp.add, sums, here), len(x0)

    zeros = jnp.zeros(num, x1.dtype)
    (total, squares, cost), rows = jax.lax.scan(add, (zeros, zeros, jnp.zeros((), x1.dtype)), keys)
    num_rows = jnp.sum(rows)
    pairs = total / num_rows * (total / (num_rows - 1)) - squares / num_rows / (num_rows - 1)
    return jnp.sum(num * pairs) - 1, cost / num_rows


def _check_dataset(x1: Array | np.ndarray) -> None:
    if np.ndim(x1) < 1 or len(x1) == 0 or not jnp.issubdtype(x1.dtype, jnp.floating):
        raise ValueError(
            f"x1 must be floating-point rows [num, *event] with num >= 1, got shape {np.shape(x1)}, dtype {x1.dtype}"
        )
    bad = np.flatnonzero(~np.isfinite(np.asarray(x1)).reshape(len(x1), -1).all(axis=1))
    if len(bad):
        raise ValueError(
            f"x1 holds values that are not finite, in {len(bad)} of {len(x1)} rows (the first: {bad[:5].tolist()}): "
            "remove or repair these rows"
        )


def _check_numbers(epsilon: float, tolerance: float, num_steps: int, batch_size: int, num: int) -> None:
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be >= 0 and finite, got {epsilon}")
    if not 0 < tolerance < 2:
        raise ValueError(f"tolerance is a marginal error, in (0, 2), got {tolerance}")
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if batch_size * num > MAX_ROWS**2:
        raise ValueError(
            f"a step of the fit holds batch_size x num = {batch_size} x {num} squared distances, "
            f"{batch_size * num * 4 / 2**30:.1f} GiB in float32, and more than once. At most {MAX_ROWS**2} are "
            f"allowed: give batch_size <= {MAX_ROWS**2 // num}, and num_steps as many times larger"
        )
