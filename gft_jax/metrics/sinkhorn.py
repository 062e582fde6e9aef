"""Sinkhorn divergence: optimal transport with an entropic term, for more samples than an assignment can take."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from gft_jax.couplings.base import squared_distances
from gft_jax.metrics.rows import flat_pair


class SinkhornDivergence(NamedTuple):
    """A Sinkhorn divergence, and whether it is to be believed."""

    value: float
    """The divergence, in the square of the unit of the data."""
    converged: bool
    """Whether all three transport problems came within the threshold. Where False, the value is wrong."""
    marginal_error: float
    """``sum_i |sum_j P_ij - 1/num_x| + sum_j |sum_i P_ij - 1/num_y|``, the largest of the three plans."""
    epsilon: float
    """The epsilon used, in the square of the unit of the data."""


def sinkhorn_divergence(
    x: Shaped[Array | np.ndarray, "..."],
    y: Shaped[Array | np.ndarray, "..."],
    *,
    epsilon: float | None = None,
    absolute_epsilon: float | None = None,
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> SinkhornDivergence:
    """Debiased entropic optimal transport cost between two sets of samples.

    ``S(x, y) = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2``,
    ``OT(x, y) = min_P sum_ij P_ij |x_i - y_j|^2 + epsilon KL(P || uniform)`` under uniform marginals, the norm over
    the whole event: in the *square* of the unit of the data. S >= 0, and 0 for equal sets, up to rounding and what
    the threshold leaves. As epsilon falls to 0, S becomes ``W2^2``; as it grows, the squared distance of the two
    means. A translation by c has ``|c|^2`` whatever epsilon.

    Bias: for equal laws the value is positive, O(1 / num) at a fixed epsilon in any dimension, with a factor that
    grows as epsilon falls; report its floor beside it. Against ``W2^2`` it is another quantity, not an estimate:
    compare values of one epsilon. By default epsilon is a fraction of the mean cost between x and y and moves with
    them; along a convergence curve, give ``absolute_epsilon``.

    Runs on the device, in float32 (float64 for float64 samples where JAX has it enabled) after centring and scaling:
    rounding is about 1e-6 of the mean cost between x and y. One cost matrix at a time is held, whole, and as much again
    to work on it: twice ``num_x num_y`` floats, 0.8 GB for 10,000 by 10,000 samples, and 1.4 GB for all of the
    process. (The blockwise mode of ott-jax 0.6 does not run under JAX >= 0.9.)

    Args:
        x: samples ``[num_x, *event]``, at least one.
        y: samples ``[num_y, *event]``, at least one; the numbers may differ.
        epsilon: strength of the entropic term in units of the mean of ``|x_i - y_j|^2``, > 0; 0.05 if neither epsilon
            is given. The three problems share it.
        absolute_epsilon: the same in the square of the unit of the data, > 0.
        threshold: each problem stops when the L1 error of a marginal is below it, > 0; float32 does not reach much
            below 1e-5 at a small epsilon.
        max_iterations: bound on the iterations of each problem, >= 1; they are run ten at a time.

    Raises:
        ValueError: for values out of range, or both epsilons at once; no samples, different events, samples that are
            not finite; an epsilon so small that the costs overflow.

    Source: Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences",
    arXiv:1810.08278; sample complexity: Genevay et al., arXiv:1810.02733. The solver is ott-jax (arXiv:2201.12324),
    which is imported here, since it takes seconds.
    """
    if epsilon is not None and absolute_epsilon is not None:
        raise ValueError(
            f"give epsilon (in units of the mean squared distance) or absolute_epsilon, not both: got "
            f"epsilon={epsilon} and absolute_epsilon={absolute_epsilon}"
        )
    settings = {"epsilon": epsilon, "absolute_epsilon": absolute_epsilon, "threshold": threshold}
    for setting, value in settings.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{setting} must be positive and finite, got {value}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be >= 1, got {max_iterations}")

    a, b = flat_pair(x, y, least=1)
    # The problem is solved at mean 0 and mean cost 1, so that float32 rounds nothing but the shape of the samples.
    centre = (a.mean(axis=0) + b.mean(axis=0)) / 2
    mean_cost = float(np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.sum(a.var(axis=0) + b.var(axis=0)))
    unit = mean_cost if mean_cost > 0 else 1.0  # where all points coincide every plan is optimal
    strength = 0.05 if epsilon is None else epsilon
    if absolute_epsilon is not None:
        strength = absolute_epsilon / unit
    dtype = jnp.promote_types(jnp.promote_types(_dtype(x), _dtype(y)), jnp.float32)
    points = [jnp.asarray((rows - centre) / math.sqrt(unit), dtype) for rows in (a, b)]

    costs, errors, all_converged = [], [], True
    # One problem after the other, so that one cost matrix is held at a time.
    for first, second in ((points[0], points[1]), (points[0], points[0]), (points[1], points[1])):
        cost, error, converged = _transport_cost(
            first,
            second,
            jnp.asarray(strength, dtype),
            symmetric=first is second,
            threshold=threshold,
            max_iterations=max_iterations,
        )
        costs.append(float(cost) * unit)
        errors.append(float(error))
        all_converged = all_converged and bool(converged)
    value = costs[0] - (costs[1] + costs[2]) / 2
    if not math.isfinite(value):
        raise ValueError(
            f"the transport costs are not finite ({costs}): epsilon {strength * unit:g} is too small for a mean "
            f"squared distance of {mean_cost:g} in {dtype}"
        )
    return SinkhornDivergence(value, all_converged, max(errors), float(strength * unit))


def _dtype(samples: Array | np.ndarray) -> jnp.dtype:
    return jnp.asarray(samples[:0]).dtype


@partial(jax.jit, static_argnames=("symmetric", "threshold", "max_iterations"))
def _transport_cost(
    x: Float[Array, "num_x size"],
    y: Float[Array, "num_y size"],
    epsilon: Float[Array, ""],
    *,
    symmetric: bool,
    threshold: float,
    max_iterations: int,
) -> tuple[Array, Array, Array]:
    """Entropic cost, L1 error of the marginals, and whether the iteration converged."""
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.acceleration import Momentum
    from ott.solvers.linear.sinkhorn import Sinkhorn

    scaled = squared_distances(x, y) / epsilon
    # Between a set and itself both potentials are equal, and their averaged updates converge in a few steps.
    updates = {"parallel_dual_updates": True, "momentum": Momentum(start=0, value=0.5)} if symmetric else {}
    # ott is given the matrix, and not the points: it would multiply them at the default (TF32) precision.
    with jax.numpy_rank_promotion("allow"):
        solver = Sinkhorn(threshold=threshold, max_iterations=max_iterations, **updates)
        out = solver(LinearProblem(Geometry(scaled, epsilon=1.0)))
    num_x, num_y = scaled.shape
    plan = jnp.exp(out.f[:, None] + out.g[None, :] - scaled)
    of_x, of_y = jnp.sum(plan, axis=1), jnp.sum(plan, axis=0)
    error = jnp.sum(jnp.abs(of_x - 1 / num_x)) + jnp.sum(jnp.abs(of_y - 1 / num_y))
    # The dual value: a lower bound of the cost that is exact to second order in what is left of the error.
    dual = jnp.mean(out.f) + jnp.mean(out.g) + math.log(num_x) + math.log(num_y) + 1 - jnp.sum(of_x)
    return epsilon * dual, error, jnp.asarray(out.converged)
