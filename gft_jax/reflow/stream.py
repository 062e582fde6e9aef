"""Training batches of pairs that are fixed."""

from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.pairing import Batches, Share, row_order
from gft_jax.pairing.checks import check_integer, checked_step, checked_steps
from gft_jax.pairing.order import WHOLE, two_keys
from gft_jax.reflow.pairs import Pairs
from gft_jax.types import Batch


def batches(pairs: Pairs, *, batch_size: int, seed: int, share: Share = WHOLE) -> Batches:
    """An endless stream of training batches of fixed pairs, for runners like that of `gft_jax.pairing.batches`.

    Order and keys of the rows are those of that stream with the same seed, so only the pairing differs. The stream has
    no coupling, and asking for its pairing is an error. `gft_jax.pairing.ahead` reads ahead.

    Args:
        pairs: those of `make_pairs` or `open_pairs`.
        batch_size: rows of a batch (over all devices).
        seed: fixes order and all randomness of the training steps.
        share: which rows of every batch the stream reads and gives.

    Raises:
        ValueError: for a batch size below one, a negative seed, a share that there is not, or a batch that does not
            divide into shares.
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    key, own = jax.random.key(seed), share.rows(batch_size)

    @jax.jit
    def keys_of(key: Key[Array, ""], step: Array) -> Key[Array, "rows"]:
        return two_keys(key, step, batch_size, own)[:, 1]

    keys_of_many = jax.jit(jax.vmap(keys_of, in_axes=(None, 0)))

    def rows_of(step: int) -> Any:
        index = row_order(len(pairs.x1), batch_size, seed, step)[own]
        return jax.tree.map(lambda leaf: leaf[index], (pairs.x0, pairs.x1, pairs.cond))

    def batch_of(keys: Key[Array, "*rows"], rows: Any) -> Batch:
        x0, x1, cond = jax.tree.map(jnp.asarray, rows)
        return Batch(x0, x1, keys, cond)

    def one(step: SupportsIndex) -> Batch:
        step = checked_step(step)
        return batch_of(keys_of(key, np.uint32(step)), rows_of(step))

    def many(first_step: SupportsIndex, count: SupportsIndex) -> Batch:
        first_step, count = checked_step(first_step), checked_steps(count)
        steps = range(first_step, first_step + count)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(rows_of, steps))
        return batch_of(keys_of_many(key, np.asarray(steps, np.uint32)), stacked)

    return Batches(one, many)
