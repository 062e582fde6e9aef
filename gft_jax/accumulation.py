"""Gradient accumulation: a batch in parts, and sums over the parts, one after another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gft_jax.types import Batch, Params


def microbatches(batch: Batch, num_parts: int, num_shares: int = 1) -> Batch:
    """The rows in ``num_parts`` parts, along a new leading axis.

    Each part takes a run of successive rows from every share: no row leaves the device that holds the share, and what
    goes by the place of a row (every k-th is replayed, or sees the base) stays as it was where a run is a multiple of
    k.

    Args:
        batch: the rows; all leaves begin with their axis.
        num_parts: number of parts.
        num_shares: equal shares of the rows, one after another, each on a device of its own.

    Raises:
        ValueError: if the rows of a share do not divide into the parts.
    """
    num_rows = batch.x0.shape[0]
    if num_rows % (num_parts * num_shares):
        spread = "" if num_shares == 1 else f" over {num_shares} devices, and on each"
        raise ValueError(
            f"a batch of {num_rows} rows does not divide{spread} into {num_parts} micro-batches: use a multiple of "
            f"{num_parts * num_shares} rows, or another num_microbatches"
        )

    def split(leaf: jax.Array) -> jax.Array:
        runs = leaf.reshape(num_shares, num_parts, -1, *leaf.shape[1:])
        return jnp.moveaxis(runs, 1, 0).reshape(num_parts, -1, *leaf.shape[1:])

    return jax.tree.map(split, batch)


def sum_of_parts(sums: Callable[[Params, Any], Any], parts: Any, params: Params) -> Any:
    """``sums(params, part)``, a pytree of arrays, added up over all parts one after another, in float32 at least."""
    like = jax.eval_shape(sums, params, jax.tree.map(lambda leaf: leaf[0], parts))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(
            lambda total, new: total + new.astype(total.dtype), total, sums(params, part)
        ), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), like)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), total, like)
