"""What all streams refuse before any work starts."""

import numbers
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gft_jax.conditions import check_rows, entries_of_labels
from gft_jax.data import Rows
from gft_jax.data.rows import chunks, is_finite


def check_stream(
    x1: Array | np.ndarray | Rows,
    cond: Any,
    batch_size: Any,
    seed: Any,
    num_classes: int | Mapping[str, int] | None,
) -> None:
    """Refuses what no stream of a dataset can be made of: the checks below, in one."""
    check_data("x1", x1)
    check_cond("cond", cond, len(x1))
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    if num_classes is not None:
        check_labels(cond, num_classes)


def check_data(name: str, rows: Array | np.ndarray | Rows) -> None:
    """Refuses a dataset that is empty, not floating-point or not finite."""
    if not np.shape(rows) or len(rows) == 0:
        raise ValueError(
            f"{name} is empty (shape {np.shape(rows)}): give an array [num, *event] with num >= 1"
        )
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(
            f"{name} must hold floating-point values, got dtype {rows.dtype}; scale images to [-1, 1] "
            "(gft_jax.data.from_images)"
        )
    _check_finite(name, rows)


def check_integer(name: str, value: Any, smallest: int) -> None:
    """Refuses what is not an integer, or below the smallest that is allowed."""
    if not isinstance(value, numbers.Integral) or value < smallest:
        raise ValueError(f"{name} must be an integer >= {smallest}, got {value!r}")


def checked_step(step: Any) -> int:
    """The number of a step, also from an array such as that of a training state.

    Raises:
        ValueError: unless it is an integer from 0 to 2^32 - 1.
    """
    return _checked_count("a step", step, 0)


def checked_steps(count: Any) -> int:
    """A number of steps.

    Raises:
        ValueError: unless it is an integer from 1 to 2^32 - 1.
    """
    return _checked_count("a number of steps", count, 1)


def _checked_count(name: str, value: Any, smallest: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not smallest <= number < 2**32:
        raise ValueError(f"{name} is an integer from {smallest} to 2^32 - 1, got {value!r}")
    return number


def check_cond(name: str, cond: Any, num_rows: int) -> None:
    """Refuses conditions of another number of rows, or that are not finite."""
    check_rows(name, cond, num_rows)
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            _check_finite(f"{name}{jax.tree_util.keystr(path)}", leaf)


def check_labels(cond: Any, num_classes: int | Mapping[str, int]) -> None:
    """Refuses labels, all conditions or some entries of them, that are not integers ``[num]`` in [0, num_classes)."""
    for name, (values, classes) in entries_of_labels("cond", cond, num_classes).items():
        labels = None if values is None else np.asarray(values)
        if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            found = f"no {name}" if labels is None else f"shape {labels.shape}, dtype {labels.dtype}"
            raise ValueError(
                f"num_classes={num_classes} needs {name} to be integer labels [num], got {found}"
            )
        bad = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(bad):
            raise ValueError(
                f"{len(bad)} of {len(labels)} labels {'' if name == 'cond' else f'{name} '}are out of range: rows "
                f"{bad[:5].tolist()} hold {labels[bad[:5]].tolist()}, allowed are 0 to {classes - 1}"
            )


def _check_finite(name: str, rows: Array | np.ndarray | Rows) -> None:
    if is_finite(rows):
        return
    num_values, bad = 0, []
    for start, chunk in chunks(rows, f"checking {name}"):
        infinite = ~np.isfinite(chunk)
        num_values += int(infinite.sum())
        bad += (start + np.flatnonzero(infinite.any(axis=tuple(range(1, chunk.ndim))))).tolist()
    if bad:
        raise ValueError(
            f"{name} holds {num_values} values that are not finite, in {len(bad)} of {len(rows)} rows (the first: "
            f"{bad[:5]}): remove or repair these rows"
        )
