"""A coupling of sources as a map shows them: base samples and new data decide who is paired, the sources move."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from gft_jax.couplings.base import Pairing, PenalisedCoupling, check_dense, flat_ends
from gft_jax.couplings.penalties import check_takes_penalty

SourceMap = Callable[[Array], Array]
"""Sources ``[rows, *event]`` -> points of the same shape, which the inner coupling sees in their place."""


def seen_through(coupling: PenalisedCoupling, source_map: SourceMap) -> PenalisedCoupling:
    """Pairs ``Phi(x0)`` with x1 by the inner coupling, and moves the rows of x0 themselves; Phi is ``source_map``.

    The inner coupling minimises ``|Phi(x0_i) - x1_j|^2`` where it would minimise ``|x0_i - x1_j|^2``. For
    fine-tuning, Phi is the flow of the base from noise to its samples (`gft_jax.sampling.flow_map`): noise is then
    paired with the new data nearest to what the base makes of it. Over a batch, ``exact()`` asks for the least change
    of the base's own map in the mean square, ``sum_k |Phi(x0[s(k)]) - x1[k]|^2``, where ``exact()`` alone asks for
    the shortest straight paths. Where the data are samples of the base, the pairs come near those of reflow,
    ``(x0, Phi(x0))``, as the batch grows. With the identity it is the inner coupling.

    No gradient flows through the map, and it is not told any conditions. An array inside ``source_map``, such as
    the base's parameters, belongs into a pytree: ``jax.tree_util.Partial(flow, base_params)`` for a function
    ``flow(base_params, x0)``. The result is a pytree too, with these arrays among its leaves.

    ``cost`` is that of the pairs, ``|x0 - x1|^2`` in the mean over the rows by their weights, and not the cost that was
    minimised: it is at least that of the inner coupling alone where this is the exact one. For pairs drawn at random it
    is of those that were drawn, an unbiased estimate of the plan's. Marginal error and entropy are those of the inner
    plan. Of two wrappers either may be the outer one: ``respecting_labels(seen_through(exact(), phi))``.

    Args:
        coupling: the inner coupling, one that minimises a cost.
        source_map: Phi. Values that are not finite are treated by the inner coupling as ends that are not.

    Raises:
        ValueError: for an inner coupling that takes no penalty, such as ``independent()``, which does not look at the
            ends; when called, if the map changes the shape of x0, and what the inner coupling raises.

    Source of reflow: Liu, Gong and Liu, "Flow straight and fast: learning to generate and transfer data with
    rectified flow", arXiv:2209.03003.
    """
    check_takes_penalty(coupling)
    return jax.tree_util.Partial(_seen_through, coupling, source_map)


def _seen_through(
    coupling: PenalisedCoupling,
    source_map: SourceMap,
    key: Key[Array, ""],
    x0: Shaped[Array | np.ndarray, "..."],
    x1: Shaped[Array | np.ndarray, "..."],
    cond: Any = None,
    source_cond: Any = None,
    *,
    penalty: Array | None = None,
) -> Pairing:
    check_dense(x0, x1)
    seen = jax.lax.stop_gradient(source_map(jax.lax.stop_gradient(jnp.asarray(x0))))
    if np.shape(seen) != np.shape(x0):
        raise ValueError(
            f"source_map must keep the shape of the sources, got {np.shape(seen)} for x0 of shape {np.shape(x0)}: it "
            "maps a whole batch [rows, *event]"
        )
    pairing = coupling(key, seen, x1, cond, source_cond, penalty=penalty)
    cost = _cost(pairing, *flat_ends(x0, x1))
    return pairing._replace(cost=cost, converged=pairing.converged & jnp.isfinite(cost))


@jax.jit
def _cost(pairing: Pairing, x0: Float[Array, "rows size"], x1: Float[Array, "rows size"]) -> Float[Array, ""]:
    squared = jnp.sum((x0[pairing.source_index] - x1[pairing.target_index]) ** 2, axis=1)
    return jnp.mean(squared if pairing.weight is None else squared * pairing.weight)
