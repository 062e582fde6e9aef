"""The unbalanced entropic coupling of a batch: rows of x1 that lie too far away lose their weight."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gft_jax.couplings.base import (
    Pairing,
    PenalisedCoupling,
    by_matrix,
    check_positive,
    squared_distances,
)
from gft_jax.couplings.rounding import drawn


def unbalanced(
    target_penalty: float | int = 1.0,
    *,
    source_penalty: float | int = math.inf,
    epsilon: float = 0.05,
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> PenalisedCoupling:
    """Draws partners from a plan that may leave rows of x1 out, and returns what is left of them as row weights.

    With m the mean squared distance of the batch, the plan P minimises
    ``sum_ij P_ij |x0_i - x1_j|^2 / m + epsilon KL(P || uniform) + r1 KL(P_x1 || 1/rows) + r0 KL(P_x0 || 1/rows)``,
    ``KL(p || q) = sum p log(p / q) - p + q``, where ``P_x1`` and ``P_x0`` are the marginals of P. The weight of row j
    is its share ``w_j = rows P_x1[j] / sum P``, of mean 1: ``w_j ~ exp(-f_j / r1)``, where ``f_j`` is what it costs to
    bring mass to ``x1_j``. No row is dropped, and x1 keeps its order. The partner of ``x1_j`` is row i with probability
    ``P_ij / sum_i P_ij``, as in `sinkhorn`.

    For outliers of the data: one that is farther than the others by c in units of m weighs about ``exp(-c / r1)``.
    Bias: the weights of all others fall with their distance too, which draws the data towards the source, in
    proportion to 1 / r1. Between normal laws in the plane the mean of the weighted data lay 0.08 to 0.2 of a
    standard deviation off at ``r1 = 1``, and 0.03 to 0.08 at 3. An outlier that is no farther from the source than the
    data, on its other side, is not recognised. Outliers enlarge m, so many of them need a smaller r1.

    By default the marginal of x0 is kept (``r0 = inf``): weighted by w, the partners are then uniform over the rows
    of x0, and a flow may start from the source itself. With a finite ``r0`` that is lost: the x0 that is used has
    another law than the source, and only where the source holds outliers of its own is that wanted.

    Args:
        target_penalty: r1 > 0; inf for `sinkhorn`, with a weight of one for each row.
        source_penalty: r0 > 0, in general inf.
        epsilon: strength of the entropic term, > 0.
        threshold: the iteration stops when the L1 distance of the marginals from what is optimal for the potentials
            is below it, > 0.
        max_iterations: bound on the iterations, >= 1; they are run ten at a time.

    Raises:
        ValueError: for values out of range; when called, for ends of different shapes, or more than 16384 rows.

    Source: Chizat et al., "Scaling algorithms for unbalanced transport problems", arXiv:1607.05816; for flow matching
    Eyring et al., "Unbalancedness in neural Monge maps improves unpaired domain translation", arXiv:2311.15100. The
    solver is ott-jax.
    """
    for name, value in (("target_penalty", target_penalty), ("source_penalty", source_penalty)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, inf for a marginal that is kept exactly, got {value}")
    check_positive("epsilon", epsilon)
    check_positive("threshold", threshold)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be >= 1, got {max_iterations}")

    from gft_jax.couplings.entropic import entropic_plan

    @jax.jit
    def pair(key: Array, x0: Array, x1: Array, penalty: Array | None) -> Pairing:
        plan, mass = entropic_plan(
            squared_distances(x1, x0),
            None if penalty is None else penalty.T,
            epsilon=epsilon,
            relative=True,
            threshold=threshold,
            max_iterations=max_iterations,
            source_penalty=source_penalty,
            target_penalty=target_penalty,
        )
        weight = mass / jnp.mean(mass)
        pairing = drawn(key, plan, x0, x1)
        law = jax.nn.softmax(plan.log, axis=1)
        cost = jnp.mean(weight * jnp.sum(law * plan.squared, axis=1))
        return pairing._replace(weight=weight, cost=cost)

    return by_matrix(pair)
