"""The entropic transport plan of a batch, by ott-jax. Imported when it is first needed, since ott takes seconds."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ott.geometry.epsilon_scheduler import Epsilon
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn

from gft_jax.couplings.base import penalised
from gft_jax.couplings.rounding import Plan


def entropic_plan(
    squared: Float[Array, "rows rows"],
    penalty: Shaped[Array, "rows rows"] | None,
    *,
    epsilon: float,
    relative: bool,
    start: float,
    threshold: float,
    max_iterations: int,
    source_penalty: float | int = math.inf,
    target_penalty: float | int = math.inf,
) -> tuple[Plan, Array]:
    """Plan of least ``sum_ij P_ij c_ij + epsilon KL(P || uniform)``, the marginals uniform or relaxed.

    Args:
        squared: squared distances, ``[rows of x1, rows of x0]``.
        penalty: added to the cost, in units of its mean; likewise.
        epsilon: in units of the mean squared distance if ``relative``, else of the squared distance itself; as are
            the penalties on the marginals.
        relative: see epsilon.
        start: multiple of epsilon at which the iteration starts.
        threshold: L1 error of the marginals at which it stops.
        max_iterations: bound on the iterations.
        source_penalty: strength r of a term ``r KL(marginal of x0 || 1/rows)``; inf for a uniform marginal.
        target_penalty: the same for x1.

    Returns:
        The plan and the marginal of x1 ``[rows]``.
    """
    rows = len(squared)
    mean = jnp.mean(squared)
    unit = jnp.where(mean > 0, mean, 1)
    scaled = penalised(squared, penalty) / epsilon * (1 if relative else unit)
    # ott's entropic term is relative to the counting measure; the constant makes it relative to the uniform law.
    # Without it the mass of a plan with relaxed marginals would grow with the rows, and the threshold mean less.
    offset = 2 * jnp.log(jnp.asarray(rows, squared.dtype))
    tau = [1.0 if p == math.inf else p / (p + epsilon) for p in (target_penalty, source_penalty)]
    # ott is given the matrix, and not the points: it would multiply them at the default (TF32) precision.
    with jax.numpy_rank_promotion("allow"):
        solver = Sinkhorn(threshold=threshold, max_iterations=max_iterations)
        geometry = Geometry(scaled + offset, epsilon=Epsilon(1.0, init=start, decay=0.8))
        out = solver(LinearProblem(geometry, tau_a=tau[0], tau_b=tau[1]))
    log_plan = out.f[:, None] + out.g[None, :] - scaled - offset
    plan = jnp.exp(log_plan)
    marginals = jnp.sum(plan, axis=1), jnp.sum(plan, axis=0)

    def error(marginal: Array, potential: Array, strength: float) -> Array:
        return jnp.sum(jnp.abs(marginal - jnp.exp(-potential * epsilon / strength) / rows))

    marginal_error = error(marginals[0], out.f, target_penalty) + error(marginals[1], out.g, source_penalty)
    # An iteration that diverges to infinity counts as converged in ott.
    converged = jnp.isfinite(mean) & jnp.isfinite(marginal_error) & jnp.asarray(out.converged)
    return Plan(log_plan, squared, converged, marginal_error), marginals[0]
