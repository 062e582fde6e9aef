"""The independent coupling: x0 and x1 are paired at random."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, Shaped

from gft_jax.couplings.base import Coupling, Pairing, flat_ends, permutation_pairing


@functools.cache  # always the same function, so that others can tell it: `gft_jax.drifts.as_score` takes no other
def independent() -> Coupling:
    """The product of the two laws, as a uniformly random permutation of the rows of x0.

    The permutation matters where the rows come in an order: sources and data that are sorted alike, or a source
    dataset aligned with the targets, are not independent as they stand. Each source is used exactly once.
    """

    def couple(
        key: Key[Array, ""],
        x0: Shaped[Array | np.ndarray, "..."],
        x1: Shaped[Array | np.ndarray, "..."],
        cond: Any = None,
        source_cond: Any = None,
    ) -> Pairing:
        x0, x1 = flat_ends(x0, x1)
        source_index = jax.random.permutation(key, x0.shape[0]).astype(jnp.int32)
        return permutation_pairing(x0, x1, source_index)

    return couple
