"""Where the rows of x0 come from."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.data import Rows, in_memory
from gft_jax.pairing.checks import check_cond, check_data

Source = Callable[[Key[Array, "rows"]], tuple[Array, Any]]
"""Draws source rows, each from its own key: keys ``[rows]`` -> ``(x0 [rows, *event], source_cond or None)``."""


def standard_normal(event_shape: Sequence[int], dtype: Any = jnp.float32) -> Source:
    """Source rows ``x0 ~ N(0, I)``, ``[rows, *event_shape]``.

    Raises:
        ValueError: for a shape that is a number.
    """
    if isinstance(event_shape, numbers.Number):
        raise ValueError(
            f"event_shape is the shape of one sample, such as ({event_shape},), got {event_shape}"
        )
    event_shape = tuple(event_shape)

    def draw(keys: Key[Array, "rows"]) -> tuple[Array, None]:
        return jax.vmap(lambda key: jax.random.normal(key, event_shape, dtype))(keys), None

    return draw


def rows_of(x0: Array | np.ndarray | Rows, source_cond: Any = None) -> Source:
    """Source rows drawn with replacement from a dataset ``[num, *event]``, with their conditions, if any.

    The whole dataset is put on the device.

    Raises:
        ValueError: if the rows are empty or not finite, or a condition has another number of rows.
    """
    check_data("x0", x0)
    check_cond("source_cond", source_cond, len(x0))
    return jax.tree_util.Partial(_draw_rows, jax.tree.map(_on_device, (x0, source_cond)))


def _on_device(rows: Array | np.ndarray | Rows) -> Array:
    return jnp.asarray(in_memory(rows))


def _draw_rows(dataset: tuple[Array, Any], keys: Key[Array, "rows"]) -> tuple[Array, Any]:
    index = jax.vmap(lambda key: jax.random.randint(key, (), 0, dataset[0].shape[0]))(keys)
    return jax.tree.map(lambda leaf: leaf[index], dataset)
