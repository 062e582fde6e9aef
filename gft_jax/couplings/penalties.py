"""What couplings that respect conditions share: conditions borne by both ends, penalties on them, checks."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, Shaped

from gft_jax.conditions import check_rows
from gft_jax.couplings.base import (
    Coupling,
    Pairing,
    PenalisedCoupling,
    check_dense,
    name_of,
    squared_distances,
)

Select = Callable[[Any, Any], tuple[Any, Any]]
"""``(cond, source_cond)`` -> those of x1, and those of x0, that a coupling is to look at; None for none."""

Penalty = Callable[[list[Array], list[Array]], Array]
"""Leaves ``[rows, ...]`` borne by x0, and by x1 -> penalty ``[rows of x0, rows of x1]``."""

Borne = Callable[[Array, Any, Any], tuple[list[Array], list[Array]]]
"""``(key, cond, source_cond)`` -> leaves borne by x0, and by x1."""


def label_penalty(weight: float | int) -> Penalty:
    """``weight`` where any entry of the labels differs, else 0."""
    _check_weight(weight, weight >= 0, ">= 0, inf for pairs within each class alone")

    @jax.jit
    def penalty(of_x0: list[Array], of_x1: list[Array]) -> Array:
        rows = len(of_x0[0])
        differ = jnp.zeros((rows, rows), bool)
        for a, b in zip(of_x0, of_x1, strict=True):
            a, b = a.reshape(rows, 1, -1), b.reshape(1, rows, -1)
            differ = differ | jnp.any(a != b, axis=-1)
        return jnp.where(differ, jnp.float32(weight), jnp.float32(0))

    return penalty


def distance_penalty(weight: float | int) -> Penalty:
    """``weight |c_i - c_j|^2``, in units of its mean over all pairs; nan where the distance overflows."""
    _check_weight(weight, 0 <= weight < math.inf, ">= 0 and finite")

    @jax.jit
    def penalty(of_x0: list[Array], of_x1: list[Array]) -> Array:
        def flatten(leaves: list[Array]) -> Array:
            dtype = functools.reduce(jnp.promote_types, (leaf.dtype for leaf in leaves), jnp.float32)
            flat = [leaf.astype(dtype).reshape(len(leaf), -1) for leaf in leaves]
            return jax.lax.stop_gradient(jnp.concatenate(flat, axis=1))

        squared = squared_distances(flatten(of_x0), flatten(of_x1))
        mean = jnp.mean(squared)
        scaled = weight * squared / jnp.where(mean > 0, mean, 1)  # equal conditions are no matter
        return jnp.where(jnp.isfinite(mean), scaled, jnp.nan)

    return penalty


def inherited(key: Key[Array, ""], cond: Any, source_cond: Any) -> tuple[list[Array], list[Array]]:
    """Leaves borne by x0, and by x1, where each row also bears the conditions of its random partner."""
    of_x1, of_x0 = _leaves(cond), _leaves(source_cond)
    # The inner coupling has the key itself, and splits it by rows, whose numbers are smaller. Of two couplings, one in
    # the other, both have the same partners: the conditions that a row inherits are those of one row.
    key_partner = jax.random.fold_in(key, 2**32 - 1)
    partner = jax.random.permutation(key_partner, len((of_x1 + of_x0)[0]))
    source_partner = jnp.argsort(partner)
    return [leaf[partner] for leaf in of_x1] + of_x0, of_x1 + [leaf[source_partner] for leaf in of_x0]


def matched(key: Key[Array, ""], cond: Any, source_cond: Any) -> tuple[list[Array], list[Array]]:
    """Leaves of x0, and of x1, as they are: conditions of one kind."""
    structures = jax.tree.structure(source_cond), jax.tree.structure(cond)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (source_cond, cond)]
    if structures[0] != structures[1] or shapes[0] != shapes[1]:
        raise ValueError(
            "source_cond and cond must be conditions of one kind to be matched, of the same structure and shapes, got "
            f"source_cond {structures[0]} {shapes[0]} and cond {structures[1]} {shapes[1]}. Where one end alone has "
            "conditions, use respecting_labels or respecting_conditions"
        )
    return _leaves(source_cond), _leaves(cond)


def penalised_by(
    coupling: PenalisedCoupling,
    penalty_of: Penalty,
    borne: Borne,
    kind: str,
    select: Select | None,
) -> PenalisedCoupling:
    """The coupling with a penalty on conditions added to its cost; a pytree with the inner one's arrays as leaves.

    Args:
        coupling: the inner coupling.
        penalty_of: penalty of two lists of conditions.
        borne: `inherited` or `matched`.
        kind: what the conditions must be: "labels" or "numbers".
        select: picks the conditions; None for all.

    Raises:
        ValueError: if the coupling takes no penalty; when called, for conditions that are missing or of another kind.
    """
    check_takes_penalty(coupling)
    return jax.tree_util.Partial(_with_penalty, coupling, penalty_of, borne, kind, select)


def check_takes_penalty(coupling: Coupling) -> None:
    """Refuses an inner coupling that minimises no cost.

    Raises:
        ValueError: if the coupling takes no penalty.
    """
    if "penalty" not in inspect.signature(coupling).parameters:
        raise ValueError(
            "the inner coupling must take a penalty, as exact(), sinkhorn() and unbalanced() do, got "
            f"{name_of(coupling)}"
        )


def _with_penalty(
    coupling: PenalisedCoupling,
    penalty_of: Penalty,
    borne: Borne,
    kind: str,
    select: Select | None,
    key: Key[Array, ""],
    x0: Shaped[Array | np.ndarray, "..."],
    x1: Shaped[Array | np.ndarray, "..."],
    cond: Any = None,
    source_cond: Any = None,
    *,
    penalty: Array | None = None,
) -> Pairing:
    check_dense(x0, x1)
    selected = (cond, source_cond) if select is None else select(cond, source_cond)
    for name, tree in zip(("cond", "source_cond"), selected, strict=True):
        _check_kind(kind, name, tree, len(x0))
    if not jax.tree.leaves(selected):
        raise ValueError(
            f"this coupling needs {kind}, and neither cond nor source_cond holds any: give them with the data "
            "(gft_jax.pairing.batches(cond=...)) or the source, or take the inner coupling alone"
        )
    added = penalty_of(*borne(key, *selected))
    total = added if penalty is None else added + penalty
    return coupling(key, x0, x1, cond, source_cond, penalty=total)


def _leaves(tree: Any) -> list[Array]:
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _check_weight(weight: float | int, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"weight must be {allowed}, got {weight}")


def _check_kind(kind: str, name: str, cond: Any, rows: int) -> None:
    check_rows(name, cond, rows)
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        dtype = leaf.dtype
        is_label = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
        if kind == "labels" and not is_label:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be labels, integers or booleans, got {dtype}. For continuous "
                "conditions use respecting_conditions or matching_conditions; for one of several conditions give select"
            )
        if kind == "numbers" and not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be floating-point, got {dtype}. For labels use "
                "respecting_labels or matching_labels; for one of several conditions give select"
            )
