"""Which rows a step sees, and the keys of its rows: pure functions of (seed, step)."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from gft_jax.pairing.checks import check_integer
from gft_jax.sampling.row_keys import row_keys as keys_by_row


class Share(NamedTuple):
    """One of ``count`` equal parts, one after another, of the rows of every batch: what a process of several reads."""

    index: int = 0
    """Which part, from 0."""
    count: int = 1
    """How many there are."""

    def rows(self, batch_size: int) -> slice:
        """Its rows among those of the whole batch.

        Raises:
            ValueError: for a part that there is not, or rows that do not divide evenly.
        """
        check_integer("count of a share", self.count, 1)
        check_integer("index of a share", self.index, 0)
        if self.index >= self.count:
            raise ValueError(f"a share counts from 0 to {self.count - 1}, got index {self.index}")
        size, rest = divmod(batch_size, self.count)
        if rest:
            raise ValueError(
                f"a batch of {batch_size} rows does not divide into {self.count} shares: use a multiple of {self.count}"
            )
        return slice(self.index * size, (self.index + 1) * size)


WHOLE = Share()


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
