"""Rows of the data that are changed at random before they are coupled."""

from typing import Any

import jax
from jaxtyping import Array, Key

from gft_jax.data import Augmentation


def check_augmentation(augment: Augmentation | None, event_shape: tuple[int, ...], dtype: Any) -> None:
    """Refuses an augmentation that makes rows of another shape or dtype."""
    if augment is None:
        return
    row = jax.ShapeDtypeStruct(event_shape, dtype)
    made = jax.eval_shape(augment, jax.eval_shape(lambda: jax.random.key(0)), row)
    if (made.shape, made.dtype) != (row.shape, row.dtype):
        raise ValueError(
            f"augment makes rows of shape {made.shape} and dtype {made.dtype} out of rows of shape {row.shape} and "
            f"dtype {row.dtype}: it must keep both"
        )


def augmented(augment: Augmentation | None, keys_of_rows: Key[Array, "rows"], rows: Array) -> Array:
    """Rows ``[rows, *event]``, each changed by a key of its own."""
    if augment is None:
        return rows
    # 0 and 1 are the keys of a split, 2 is that of the dropped conditions.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys_of_rows)
    return jax.vmap(augment)(keys, rows)
