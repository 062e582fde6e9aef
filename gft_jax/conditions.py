"""Conditions of rows, and null conditions: what stands for "no condition" in classifier-free guidance."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_rows(name: str, cond: Any, num_rows: int) -> None:
    """Refuses conditions that do not have one row for each sample: they would be broadcast, and nobody would know.

    Args:
        name: of the argument, for the message.
        cond: a pytree of ``[rows, ...]``, or None.
        num_rows: number of samples.

    Raises:
        ValueError: if a leaf has no leading axis, or one of another length.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        if np.shape(leaf)[:1] != (num_rows,):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have one row for each of the {num_rows} samples, got shape "
                f"{np.shape(leaf)}"
            )


def entries_of_labels(
    name: str, cond: Any, num_classes: int | Mapping[str, int]
) -> dict[str, tuple[Any, int]]:
    """The labels among conditions, each with its number of classes, by their names for messages.

    Args:
        name: of the argument.
        cond: labels, or a mapping with entries that are labels.
        num_classes: number of classes of the labels, or by the name of each entry that holds some.

    Raises:
        ValueError: if num_classes names entries that cond does not have.
    """
    if not isinstance(num_classes, Mapping):
        return {name: (cond, num_classes)}
    there = sorted(cond) if isinstance(cond, Mapping) else []
    if missing := sorted(set(num_classes) - set(there)):
        raise ValueError(f"num_classes names the entries {missing}, and {name} has {there or 'no entries'}")
    return {f"{name}[{entry!r}]": (cond[entry], classes) for entry, classes in num_classes.items()}


def null_like(null_cond: Any, cond: Any) -> Any:
    """The null condition as one row of cond: leaves ``[...]`` in the dtypes of the leaves ``[rows, ...]``.

    Raises:
        ValueError: if the null condition has another structure than a row of cond, or a leaf of another shape, or
            one that changes its value in the dtype of cond (such as 0.5 among integer labels; values that are traced
            cannot be checked).
    """
    structures = jax.tree.structure(null_cond), jax.tree.structure(cond)
    if structures[0] != structures[1]:
        raise ValueError(
            f"null_cond must be like one row of cond, but the one is {structures[0]} and the other {structures[1]}."
        )

    def as_row(path: Any, null: Any, rows: Any) -> jax.Array:
        name = f"null_cond{jax.tree_util.keystr(path)}"
        if np.shape(null) != np.shape(rows)[1:]:
            raise ValueError(
                f"{name} must be like one row of cond, shape {np.shape(rows)[1:]}, got shape {np.shape(null)}."
            )
        if isinstance(null, Tracer):
            return null.astype(rows.dtype)
        row = np.asarray(null).astype(rows.dtype)
        if not jnp.issubdtype(rows.dtype, jnp.inexact) and not np.array_equal(row, null):
            raise ValueError(f"{name} is {null}, which {rows.dtype}, the dtype of cond, cannot hold.")
        return jnp.asarray(row)

    return jax.tree_util.tree_map_with_path(as_row, null_cond, cond)
