"""What a pairing achieves: its cost between the optimal and the independent one, and what it uses of both ends."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from gft_jax.couplings.base import Coupling, Pairing, flat_ends, mean_squared_distance
from gft_jax.couplings.exact import exact
from gft_jax.couplings.semidiscrete import SemidiscretePotentials

_EXACT = exact()
Checked = TypeVar("Checked", Pairing, SemidiscretePotentials)


class Diagnostics(NamedTuple):
    """Scalars of one pairing; costs are mean squared distances ``|x0 - x1|^2``, in the square of the data's unit."""

    cost: Array
    """Of the pairing, as it reports it."""
    independent_cost: Array
    """Mean over all pairs of the batch: the expected cost of a random pairing."""
    optimal_cost: Array
    """Of the least costly pairing of this batch."""
    excess: Array
    """``(cost - optimal) / (independent - optimal)``: 0 for the optimal coupling, 1 for the independent one on average;
    a weighted pairing may be below 0. It is 0 where all pairings cost the same."""
    distinct_sources: Array
    """Share of the rows of x0 that are in some pair; 1 for a permutation, ``1 - 1/e = 0.63`` for partners drawn
    uniformly."""
    distinct_targets: Array
    """Share of the rows of x1 that are in some pair; 1 wherever x1 keeps its order."""
    effective_rows: Array
    """``(sum w)^2 / (rows sum w^2)`` of the row weights; 1 without weights."""
    entropy: Array
    """As in `Pairing`, in nats: ``exp(entropy)`` is the effective number of partners that a row chooses from."""
    marginal_error: Array
    """As in `Pairing`."""
    converged: Array
    """As in `Pairing`."""


def diagnose(
    pairing: Pairing,
    x0: Shaped[Array | np.ndarray, "..."],
    x1: Shaped[Array | np.ndarray, "..."],
    *,
    optimal: Coupling = _EXACT,
) -> Diagnostics:
    """Diagnostics of a pairing, also inside jit.

    All but ``optimal_cost`` take little time; that one takes as long as ``optimal``, by default the exact coupling:
    0.1 to 0.5 s for 1024 rows, in O(rows^3). For thousands of rows there is ``sinkhorn(0.002)``: 0.4 % above it for
    1024 points of the plane, and more where optimal pairs are much nearer than that, as among repeated rows.

    Args:
        pairing: what a coupling returned for these ends.
        x0: the sources it was given ``[rows, *event]``, before they were moved.
        x1: the data it was given, likewise.
        optimal: the coupling whose cost counts as optimal; its key is fixed.

    Raises:
        ValueError: for ends of different shapes, and what ``optimal`` raises.
    """
    a, b = flat_ends(x0, x1)
    best = optimal(jax.random.key(0), a, b).cost
    return _diagnostics(pairing, a, b, best)


@jax.jit
def _diagnostics(
    pairing: Pairing, x0: Float[Array, "rows size"], x1: Float[Array, "rows size"], optimal: Float[Array, ""]
) -> Diagnostics:
    independent = mean_squared_distance(x0, x1)
    gap = independent - optimal
    excess = jnp.where(gap > 0, (pairing.cost - optimal) / jnp.where(gap > 0, gap, 1), 0)
    weight = jnp.ones(len(x1), x1.dtype) if pairing.weight is None else pairing.weight

    def share(index: Int[Array, "pairs"]) -> Float[Array, ""]:
        used: Bool[Array, "rows"] = jnp.zeros(len(x1), bool).at[index].set(True)
        return jnp.mean(used.astype(x1.dtype))

    return Diagnostics(
        cost=pairing.cost,
        independent_cost=independent,
        optimal_cost=optimal,
        excess=excess,
        distinct_sources=share(pairing.source_index),
        distinct_targets=share(pairing.target_index),
        effective_rows=jnp.sum(weight) ** 2 / (len(x1) * jnp.sum(weight**2)),
        entropy=pairing.entropy,
        marginal_error=pairing.marginal_error,
        converged=pairing.converged,
    )


def require_converged(found: Checked) -> Checked:
    """The pairing, or the semi-discrete potentials, themselves, outside jit, where they converged.

    Raises:
        ValueError: if they did not, with the marginal error and what to do.
    """
    if bool(found.converged):
        return found
    error = float(found.marginal_error)
    if isinstance(found, SemidiscretePotentials):
        raise ValueError(
            f"the potentials have not converged: their marginal error is {error:.3g}. Raise num_steps (four times as "
            "many about halve it), or epsilon (needed where rows of the data coincide, or the source has few points), "
            "or tolerance if so large an error does no harm"
        )
    if not np.isfinite(float(found.cost)):
        raise ValueError(
            f"the coupling found no plan (cost {float(found.cost)}, marginal error {error:.3g}): the ends or their "
            "conditions hold values that are not finite or whose squared distances overflow, or labels forbid all "
            "pairs of a row (give them a finite weight)"
        )
    raise ValueError(
        f"the coupling has not converged (marginal error {error:.3g}): raise epsilon (about as many times fewer "
        "iterations), or max_iterations (num_steps of semi-discrete potentials), or threshold (their tolerance) if so "
        "large an error does no harm; with labels that are matched, their counts at both ends must agree, or the "
        "weight be finite"
    )
