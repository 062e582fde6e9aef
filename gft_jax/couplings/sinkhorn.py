"""The entropic optimal coupling of a batch: pairs drawn from the plan of Sinkhorn's algorithm."""

import jax
from jaxtyping import Array

from gft_jax.couplings.base import (
    Pairing,
    PenalisedCoupling,
    by_matrix,
    check_positive,
    squared_distances,
)
from gft_jax.couplings.rounding import Rounding, drawn


def sinkhorn(
    epsilon: float | None = None,
    *,
    absolute_epsilon: float | None = None,
    rounding: Rounding = drawn,
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> PenalisedCoupling:
    """Draws for each x1 a partner x0 from the entropic optimal transport plan between the two batches.

    The plan P minimises ``sum_ij P_ij |x0_i - x1_j|^2 + epsilon KL(P || uniform)`` under uniform marginals. As
    epsilon goes to 0 it becomes the exact assignment, as epsilon grows the independent coupling. The partner of
    ``x1_j`` is row i with probability ``P_ij / sum_i P_ij``, drawn with a key of its own. So each
    x1 is kept exactly once, while an x0 may be used several times or never; the law of the partners, over
    the draw and all x1, is within ``marginal_error`` (L1) of uniform over the rows of x0. With
    ``rounding=one_to_one`` each x0 is used once as well.

    Runs on the device, also inside jit and vmap. ``cost`` is the expected mean squared distance of the pairs drawn.
    The smaller epsilon, the more iterations; where they do not suffice, or the ends are not finite, the plan is
    wrong, and ``converged`` is False. Under a penalty that forbids pairs (`PenalisedCoupling`), it is also False
    where uniform marginals cannot be had without them.

    Args:
        epsilon: strength of the entropic term in units of the batch's mean squared distance between x0 and x1,
            > 0; 0.05 if neither epsilon is given.
        absolute_epsilon: the same in units of the squared distance itself, > 0. A Brownian bridge of diffusion g
            becomes a Schroedinger bridge at ``absolute_epsilon = 2 g^2``.
        rounding: makes pairs of the plan: `drawn` or `one_to_one`.
        threshold: the iteration stops when the L1 error of the partners' law is below it, > 0. An epsilon below about
            1e-4 leaves float32 too few digits for 1e-3: ``converged`` is False where the plan is off by more than twice
            the threshold.
        max_iterations: bound on the iterations, >= 1; they are run ten at a time, after ten for each
            factor of five by which epsilon comes down from a quarter of the mean squared distance.

    Raises:
        ValueError: for values out of range, or both epsilons at once; when called, for ends of different shapes, or
            more than 16384 rows.

    Source: Cuturi, "Sinkhorn distances", arXiv:1306.0895; for flow matching Tong et al., arXiv:2302.00482. The solver
    is ott-jax (arXiv:2201.12324), which is imported here, since it takes seconds; how it is kept stable and quick:
    Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems", arXiv:1610.06519.
    """
    relative = absolute_epsilon is None
    if not relative and epsilon is not None:
        raise ValueError(
            f"give epsilon (in units of the mean squared distance) or absolute_epsilon, not both: got "
            f"epsilon={epsilon} and absolute_epsilon={absolute_epsilon}"
        )
    strength = absolute_epsilon if absolute_epsilon is not None else 0.05 if epsilon is None else epsilon
    check_positive("epsilon" if relative else "absolute_epsilon", strength)
    check_positive("threshold", threshold)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be >= 1, got {max_iterations}")

    from gft_jax.couplings.entropic import entropic_plan

    @jax.jit
    def pair(key: Array, x0: Array, x1: Array, penalty: Array | None) -> Pairing:
        # ott leaves its first marginal exact and its second within the threshold. With x1 first, the plan is
        # therefore the law that is drawn from, and the error reported that of the partners.
        plan, _ = entropic_plan(
            squared_distances(x1, x0),
            None if penalty is None else penalty.T,
            epsilon=strength,
            relative=relative,
            threshold=threshold,
            max_iterations=max_iterations,
        )
        return rounding(key, plan, x0, x1)

    return by_matrix(pair)
