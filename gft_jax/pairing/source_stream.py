"""Batches of source rows alone: for methods that make their own data, as reward fine-tuning does."""

from typing import Any, SupportsIndex

import jax
import numpy as np
from jaxtyping import Array, Key

from gft_jax.pairing.checks import check_cond, check_integer, checked_step, checked_steps
from gft_jax.pairing.order import WHOLE, Share, row_order, two_keys
from gft_jax.pairing.sources import Source
from gft_jax.pairing.stream import Batches
from gft_jax.types import Batch


def source_batches(
    source: Source, *, batch_size: int, seed: int, cond: Any = None, share: Share = WHOLE
) -> Batches:
    """Batches of source rows alone, ``x1 = None``; the stream has no pairing, and asking for it is an error.

    Args:
        source: draws the source rows, e.g. `standard_normal`.
        batch_size: rows of a batch (over all devices).
        seed: fixes source rows, order of the conditions and all randomness of the training steps.
        cond: conditions to be met in reshuffled order, a pytree of ``[num, ...]``; None for none.
        share: which rows of every batch the stream gives, as in `batches`.

    Raises:
        ValueError: for a batch size below one, a negative seed, conditions that are empty, of different length or not
            finite, a share that there is not, or a batch that does not divide into shares.
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    lengths = {len(leaf) for leaf in jax.tree.leaves(cond) if np.ndim(leaf)}
    num_conds = min(lengths, default=1)
    if num_conds == 0:
        raise ValueError("cond has no rows: give conditions [num, ...] with num >= 1, or None for none")
    check_cond("cond", cond, num_conds)
    key, own = jax.random.key(seed), share.rows(batch_size)

    @jax.jit
    def draw(key: Key[Array, ""], step: Array, row_cond: Any) -> Batch:
        keys = two_keys(key, step, batch_size, own)
        x0, source_cond = source(keys[:, 0])
        return Batch(x0, None, keys[:, 1], row_cond, source_cond)

    draw_many = jax.jit(jax.vmap(draw, in_axes=(None, 0, 0)))

    def conds_at(step: int) -> Any:
        index = row_order(num_conds, batch_size, seed, step)[own]
        return jax.tree.map(lambda leaf: leaf[index], cond)

    def many(first_step: SupportsIndex, count: SupportsIndex) -> Batch:
        first_step, count = checked_step(first_step), checked_steps(count)
        steps = range(first_step, first_step + count)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(conds_at, steps))
        return draw_many(key, np.asarray(steps, np.uint32), stacked)

    def one(step: SupportsIndex) -> Batch:
        step = checked_step(step)
        return draw(key, np.uint32(step), conds_at(step))

    return Batches(one, many)
