"""Conditions that are dropped at random, as classifier-free guidance needs.

Source: Ho and Salimans, "Classifier-free diffusion guidance", arXiv:2207.12598, algorithm 1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.conditions import entries_of_labels, null_like


class Dropout(NamedTuple):
    """With which probability a row's condition becomes the null condition."""

    probability: Any
    """Scalar."""
    null_row: Any
    """Like one row of the conditions."""


def dropout_of(
    probability: float, null_cond: Any, cond: Any, num_classes: int | Mapping[str, int] | None
) -> Dropout | None:
    """The dropout that was asked for, or None where nothing is dropped.

    Raises:
        ValueError: for a probability outside [0, 1], without conditions or without a null condition like theirs, a
            null condition without probability, or one that is a class.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"cond_dropout is a probability in [0, 1], got {probability}")
    if (probability > 0) != (null_cond is not None):
        raise ValueError(
            f"cond_dropout and null_cond belong together, got cond_dropout={probability} and null_cond={null_cond}"
        )
    if null_cond is None:
        return None
    if cond is None:
        raise ValueError(f"cond_dropout={probability} needs conditions to drop, and cond is None")
    null_row = null_like(null_cond, cond)
    labels = {} if num_classes is None else entries_of_labels("null_cond", null_row, num_classes)
    for name, (label, classes) in labels.items():
        if 0 <= label < classes:
            raise ValueError(
                f"{name} is {label}, one of the {classes} classes: dropped rows would count as its own. Give a label "
                f"that is none, such as {classes}"
            )
    return Dropout(np.asarray(probability, np.float32), null_row)


def dropped(dropout: Dropout | None, keys_of_rows: Key[Array, "rows"], cond: Any) -> Any:
    """Conditions ``[rows, ...]``, some of them replaced by the null condition."""
    if dropout is None:
        return cond
    # fold_in(key, i) is the i-th key of a split, and a row's key is split in two: 0 and 1 are taken.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys_of_rows)
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, dropout.probability))(keys)

    def replace(null: Array, rows: Array) -> Array:
        return jnp.where(drop.reshape(drop.shape + (1,) * null.ndim), null, rows)

    return jax.tree.map(replace, dropout.null_row, cond)
