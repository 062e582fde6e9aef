"""The entropic optimal coupling of a batch: pairs drawn from the plan of Sinkhorn's algorithm."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, Shaped

from gft_jax.couplings.base import Coupling, Pairing, flat_ends, squared_distances


def sinkhorn(
    epsilon: float | None = None,
    *,
    absolute_epsilon: float | None = None,
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Coupling:
    """Draws for each x1 a partner x0 from the entropic optimal transport plan between the two batches.

    The plan P minimises ``sum_ij P_ij |x0_i - x1_j|^2 + epsilon KL(P || uniform)`` under uniform marginals. As
    epsilon goes to 0 it becomes the exact assignment, as epsilon grows the independent coupling. The partner of
    ``x1_j`` is row i with probability ``P_ij / sum_i P_ij``, drawn in the log domain with a key of its own. So
    each x1 is kept exactly once, while an x0 may be used several times or never; the law of the partners, over
    the draw and all x1, is within ``marginal_error`` (L1) of uniform over the rows of x0.

    Runs on the device, also inside jit and vmap. ``cost`` is the expected mean squared distance of the pairs drawn.
    The smaller epsilon, the more iterations; where they do not suffice, or the ends are not finite, the plan is
    wrong, and ``converged`` is False.

    Args:
        epsilon: strength of the entropic term in units of the batch's mean squared distance between x0 and x1,
            > 0; 0.05 if neither epsilon is given.
        absolute_epsilon: the same in units of the squared distance itself, > 0. A Brownian bridge of diffusion g
            becomes a Schroedinger bridge at ``absolute_epsilon = 2 g^2``.
        threshold: the iteration stops when the L1 error of the partners' law is below it, > 0.
        max_iterations: bound on the iterations, >= 1; they are run ten at a time.

    Raises:
        ValueError: for values out of range, or both epsilons at once; when called, for ends of different shapes.

    Source: Cuturi, "Sinkhorn distances", arXiv:1306.0895; for flow matching Tong et al., arXiv:2302.00482. The solver
    is ott-jax (arXiv:2201.12324), which is imported here, since it takes seconds.
    """
    relative = absolute_epsilon is None
    if not relative and epsilon is not None:
        raise ValueError(
            f"give epsilon (in units of the mean squared distance) or absolute_epsilon, not both: got "
            f"epsilon={epsilon} and absolute_epsilon={absolute_epsilon}"
        )
    strength = absolute_epsilon if absolute_epsilon is not None else 0.05 if epsilon is None else epsilon
    _check_positive("epsilon" if relative else "absolute_epsilon", strength)
    _check_positive("threshold", threshold)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be >= 1, got {max_iterations}")

    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    @jax.jit
    def draw(key: Array, x0: Array, x1: Array) -> Pairing:
        rows = x1.shape[0]
        # ott leaves its first marginal exact and its second within the threshold. With x1 first, the plan is
        # therefore the law that is drawn from, and the error reported that of the partners.
        cost = squared_distances(x1, x0)
        mean_cost = jnp.mean(cost)
        # Where all points coincide every plan is optimal, and any positive epsilon will do.
        unit = jnp.where(mean_cost > 0, mean_cost, 1) if relative else jnp.ones((), cost.dtype)
        scaled = cost / (strength * unit)
        # ott is given the matrix, and not the points: it would multiply them at the default (TF32) precision.
        with jax.numpy_rank_promotion("allow"):
            solver = Sinkhorn(threshold=threshold, max_iterations=max_iterations)
            out = solver(LinearProblem(Geometry(scaled, epsilon=1.0)))
        log_plan = out.f[:, None] + out.g[None, :] - scaled
        plan = jnp.exp(log_plan)
        marginals = jnp.concatenate([jnp.sum(plan, 0), jnp.sum(plan, 1)])
        marginal_error = jnp.sum(jnp.abs(marginals - 1 / rows))
        partner = jax.vmap(jax.random.categorical)(jax.random.split(key, rows), log_plan)
        return Pairing(
            source_index=partner.astype(jnp.int32),
            target_index=jnp.arange(rows, dtype=jnp.int32),
            weight=None,
            converged=jnp.isfinite(mean_cost) & jnp.asarray(out.converged),
            cost=jnp.mean(jnp.sum(jax.nn.softmax(log_plan, axis=1) * cost, axis=1)),
            marginal_error=marginal_error,
        )

    def couple(
        key: Key[Array, ""],
        x0: Shaped[Array | np.ndarray, "..."],
        x1: Shaped[Array | np.ndarray, "..."],
        cond: Any = None,
        source_cond: Any = None,
    ) -> Pairing:
        return draw(key, *flat_ends(x0, x1))

    return couple


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
