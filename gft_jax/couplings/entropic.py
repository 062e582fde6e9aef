"""The entropic transport plan of a batch, by ott-jax. Imported when it is first needed, since ott takes seconds."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn

from gft_jax.couplings.base import penalised
from gft_jax.couplings.rounding import Plan

_ROUND = 10
"""Iterations between two absorptions: few enough that scalings stay within the range of float32."""
_START, _FALL = 0.25, 5.0
"""Epsilon of the first round, in units of the mean cost, and the factor by which it falls from round to round."""


_MOST_RELAXED = 60.0
"""A relaxed marginal lies between ``exp(-60)`` and ``exp(60)`` times the uniform one: float32 holds no more."""


@jax.tree_util.register_pytree_node_class
class _Kernel(Geometry):
    """A kernel that is multiplied as it is: ott's own raises it to a power first, each time, and takes TF32."""

    def apply_kernel(self, vec: Array, eps: float | None = None, axis: int = 0) -> Array:
        kernel = self.kernel_matrix
        factors = (vec, kernel) if axis == 0 else (kernel, vec)
        return jnp.matmul(*factors, precision=jax.lax.Precision.HIGHEST)


class _State(NamedTuple):
    """Of the iteration, after a round."""

    f: Array
    """Potential of x1 ``[rows]``, in units of the cost."""
    g: Array
    """Potential of x0, likewise."""
    epsilon: Array
    """Of the round that comes."""
    error: Array
    """L1 error of the marginals after the last round."""
    iterations: Array
    """Number of iterations taken at the epsilon that is asked for."""


def entropic_plan(
    squared: Float[Array, "rows rows"],
    penalty: Shaped[Array, "rows rows"] | None,
    *,
    epsilon: float,
    relative: bool,
    threshold: float,
    max_iterations: int,
    source_penalty: float | int = math.inf,
    target_penalty: float | int = math.inf,
) -> tuple[Plan, Array]:
    """Plan of least ``sum_ij P_ij c_ij + epsilon KL(P || uniform)``, the marginals uniform or relaxed.

    Sinkhorn's iteration on a kernel ``exp((f_i + g_j - c_ij) / epsilon)`` that has absorbed the potentials found so
    far, which is as stable as one in the log domain and needs an exponential of the matrix once in ten iterations in
    place of twice in each. Epsilon falls from a quarter of the mean cost to its value by a factor of five a round.

    Args:
        squared: squared distances, ``[rows of x1, rows of x0]``.
        penalty: added to the cost, in units of its mean; likewise.
        epsilon: in units of the mean squared distance if ``relative``, else of the squared distance itself.
        relative: see epsilon.
        threshold: L1 error of the marginals at which it stops.
        max_iterations: bound on the iterations at epsilon itself.
        source_penalty: strength r of a term ``r KL(marginal of x0 || 1/rows)``, in the unit of a relative epsilon;
            inf for a uniform marginal.
        target_penalty: the same for x1.

    Returns:
        The plan and the marginal of x1 ``[rows]``.

    Source: Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems",
    arXiv:1610.06519; relaxed marginals: Chizat et al., "Scaling algorithms for unbalanced transport problems",
    arXiv:1607.05816.
    """
    rows = len(squared)
    mean = jnp.mean(squared)
    cost = penalised(squared, penalty)
    target = jnp.asarray(epsilon, squared.dtype)
    if not relative:
        target = target / jnp.where(mean > 0, mean, 1)
    strengths = target_penalty, source_penalty
    tau = [1.0 if strength == math.inf else strength / (strength + epsilon) for strength in strengths]

    def kernel(f: Array, g: Array, epsilon: Array) -> Array:
        # The division makes the entropic term relative to the uniform law, not to the counting measure: the mass
        # of a plan with relaxed marginals would otherwise grow with the rows.
        return jnp.exp((f[:, None] + g[None, :] - cost) / epsilon) / rows**2

    def relaxed(exponent: Array) -> Array:
        return jnp.exp(-jnp.clip(exponent, -_MOST_RELAXED, _MOST_RELAXED)) / rows

    def error_of(marginals: tuple[Array, Array], potentials: tuple[Array, Array]) -> Array:
        # A relaxed marginal is to be what is optimal for the potential.
        of_x1, of_x0 = (
            jnp.sum(jnp.abs(marginal - relaxed(potential / strength)))
            for marginal, potential, strength in zip(marginals, potentials, strengths, strict=True)
        )
        return of_x1 + of_x0

    def round_of(state: _State) -> _State:
        f, g, at = state.f, state.g, state.epsilon
        geometry = _Kernel(kernel_matrix=kernel(f, g, at), epsilon=1.0)
        # A relaxed marginal sees the whole potential, of which the kernel has absorbed a part.
        a, b = (relaxed(p / at * (1 / t - 1)) for p, t in zip((f, g), tau, strict=True))
        solver = Sinkhorn(
            lse_mode=False, min_iterations=_ROUND, max_iterations=_ROUND, inner_iterations=_ROUND
        )
        with jax.numpy_rank_promotion("allow"):
            out = solver(LinearProblem(geometry, a, b, tau_a=tau[0], tau_b=tau[1]))
        u, v = jnp.exp(out.f), jnp.exp(out.g)
        marginals = u * geometry.apply_kernel(v, axis=1), v * geometry.apply_kernel(u, axis=0)
        f, g = f + at * out.f, g + at * out.g
        return _State(
            f,
            g,
            epsilon=jnp.maximum(at / _FALL, target),
            error=error_of(marginals, (f, g)),
            iterations=state.iterations + jnp.where(at > target, 0, _ROUND),
        )

    def goes_on(state: _State) -> Array:
        too_large = (state.error > threshold) & (state.iterations < max_iterations)
        return (state.iterations == 0) | too_large

    # With marginals that are kept, every row and column of the first kernel has an entry of one, and none is larger.
    f = jnp.min(cost, axis=1)
    f = tau[0] * jnp.where(jnp.isfinite(f), f, 0)
    g = jnp.min(cost - f[:, None], axis=0)
    g = tau[1] * jnp.where(jnp.isfinite(g), g, 0)
    first = _State(f, g, jnp.maximum(target, _START), jnp.asarray(jnp.inf, squared.dtype), jnp.asarray(0))
    state = jax.lax.while_loop(goes_on, round_of, first)

    log_plan = (state.f[:, None] + state.g[None, :] - cost) / target - 2 * math.log(rows)
    law = jax.nn.softmax(log_plan, axis=1)  # as in the rounding, so that the exponential is taken once
    mass = jnp.exp(jax.nn.logsumexp(log_plan, axis=1))
    of_x0 = jnp.matmul(mass, law, precision=jax.lax.Precision.HIGHEST)
    marginal_error = error_of((mass, of_x0), (state.f, state.g))
    # The plan is made anew from the potentials, which a small epsilon leaves with few digits.
    converged = jnp.isfinite(mean) & (state.error <= threshold) & (marginal_error <= 2 * threshold)
    return Plan(log_plan, squared, converged, marginal_error), mass
