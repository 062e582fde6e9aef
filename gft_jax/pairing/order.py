"""Which rows a step sees, and the keys of its rows: pure functions of (seed, step)."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from gft_jax.pairing.checks import check_integer
from gft_jax.sampling.row_keys import row_keys as keys_by_row


class Share(NamedTuple):
    """One of ``num_parts`` equal parts, one after another, of the rows of every batch: what a process reads."""

    part: int = 0
    """Which one, from 0."""
    num_parts: int = 1
    """How many there are."""

    def rows(self, batch_size: int) -> slice:
        """Its rows among those of the whole batch.

        Raises:
            ValueError: for a part that there is not, or rows that do not divide evenly.
        """
        check_integer("num_parts of a share", self.num_parts, 1)
        check_integer("part of a share", self.part, 0)
        if self.part >= self.num_parts:
            raise ValueError(f"parts of a share count from 0 to {self.num_parts - 1}, got {self.part}")
        size, rest = divmod(batch_size, self.num_parts)
        if rest:
            raise ValueError(
                f"a batch of {batch_size} rows does not divide into {self.num_parts} shares: use a multiple of "
                f"{self.num_parts}"
            )
        return slice(self.part * size, (self.part + 1) * size)


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


def two_keys(key: Key[Array, ""], step: Any, batch_size: int, own: slice) -> Key[Array, "rows 2"]:
    """Two keys for each row that is given of a step: what draws its source, and what training draws from."""
    return jax.vmap(jax.random.split)(keys_by_row(jax.random.fold_in(key, step), batch_size)[own])


@functools.lru_cache(maxsize=8)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)
