"""Which rows a step sees, and the keys of its rows: pure functions of (seed, step)."""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from gft_jax.sampling.row_keys import row_keys as keys_by_row


def row_order(num_rows: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, "batch_size"]:
    """Indices of the dataset rows of a step.

    The stream is one reshuffled permutation of all rows after another, cut into batches without regard to
    where a permutation ends: each row is seen once per epoch, also if there are fewer rows than a batch holds.
    """
    epochs, offsets = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_rows)
    index = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = _permutation(num_rows, seed, int(epoch))[offsets[here]]
    return index


def row_keys(seed: int, step: Any, num_rows: int) -> Key[Array, "rows"]:
    """One key per row: ``fold_in(fold_in(key(seed), step), row)``; on many devices ``row`` is the global one."""
    return keys_by_row(jax.random.fold_in(jax.random.key(seed), step), num_rows)


@functools.lru_cache(maxsize=8)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)
