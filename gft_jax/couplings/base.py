"""What a coupling is and returns, and what all couplings share: checks, squared distances, moving rows."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key, Shaped


class Pairing(NamedTuple):
    """Who is paired with whom: row k of the paired batch is ``(x0[source_index[k]], x1[target_index[k]])``.

    A pairing is a constant for autodiff: no gradient flows through any of its fields.
    """

    source_index: Array
    """Row of x0 in each pair ``[rows]``."""
    target_index: Array
    """Row of x1 in each pair ``[rows]``; ``arange(rows)`` wherever x1 keeps its order."""
    weight: Array | None
    """Positive weight of each pair ``[rows]`` in the loss; None means one each."""
    converged: Array
    """Whether the pairing is what the coupling promises; False after too few iterations, or, inside jit, for
    ends that are not finite."""
    cost: Array
    """Mean squared distance ``|x0 - x1|^2`` (sum over the event, mean over pairs) under the plan that the pairs
    come from: for a permutation the pairs themselves, for pairs drawn at random its expectation over the draw."""
    marginal_error: Array
    """``sum_i |sum_j P_ij - 1/rows| + sum_j |sum_i P_ij - 1/rows|`` of the plan P; 0 for a permutation."""


@runtime_checkable
class Coupling(Protocol):
    """Pairs a batch of sources with a batch of data: ``(key, x0, x1, cond=None, source_cond=None)`` -> Pairing.

    x0 and x1 are ``[rows, *event]``; ``cond`` belongs to the rows of x1, ``source_cond`` to those of x0. Both are
    pytrees of ``[rows, ...]`` or None, and couplings that look at the ends alone ignore them. The function is
    pure: the same key gives the same pairing.
    """

    def __call__(
        self,
        key: Key[Array, ""],
        x0: Array | np.ndarray,
        x1: Array | np.ndarray,
        cond: Any = None,
        source_cond: Any = None,
        /,
    ) -> Pairing:
        """Pairing of the rows of x0 with the rows of x1."""
        ...


def apply(
    pairing: Pairing,
    x0: Shaped[Array | np.ndarray, "..."],
    x1: Shaped[Array | np.ndarray, "..."],
    cond: Any = None,
    source_cond: Any = None,
) -> tuple[Array, Array, Any, Any]:
    """The paired rows ``(x0, x1, cond, source_cond)``: whole rows move, conditions with the end they belong to.

    Args:
        pairing: what a coupling returned for these very arrays.
        x0: sources ``[rows, *event]``.
        x1: data ``[rows, *event]``.
        cond: conditions of the data: a pytree of ``[rows, ...]``, or None.
        source_cond: conditions of the sources, likewise.

    Raises:
        ValueError: if a condition has another number of rows than the end it belongs to.
    """
    _check_cond("cond", cond, "x1", x1)
    _check_cond("source_cond", source_cond, "x0", x0)

    def take(index: Array, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tree)

    source, target = pairing.source_index, pairing.target_index
    return take(source, x0), take(target, x1), take(target, cond), take(source, source_cond)


def flat_ends(
    x0: Shaped[Array | np.ndarray, "..."], x1: Shaped[Array | np.ndarray, "..."]
) -> tuple[Float[Array, "rows size"], Float[Array, "rows size"]]:
    """Both ends as ``[rows, size of the event]`` in one dtype of at least single precision, without gradient.

    Raises:
        ValueError: unless both are ``[rows, *event]`` of one shape with ``rows >= 1``.
    """
    if np.shape(x0) != np.shape(x1) or np.ndim(x0) < 1 or len(x0) == 0:
        raise ValueError(
            "x0 and x1 must have the same shape [rows, *event] with rows >= 1, "
            f"got x0 {np.shape(x0)} and x1 {np.shape(x1)}: draw one source row for each row of data"
        )
    a, b = jnp.asarray(x0), jnp.asarray(x1)
    dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)

    def flatten(x: Array) -> Array:
        return jax.lax.stop_gradient(x.astype(dtype).reshape(x.shape[0], -1))

    return flatten(a), flatten(b)


@jax.jit
def squared_distances(
    x: Float[Array, "num_x size"], y: Float[Array, "num_y size"]
) -> Float[Array, "num_x num_y"]:
    """Matrix of squared distances ``|x_i - y_j|^2``.

    Computed as ``|a|^2 + |b|^2 - 2 a.b`` with full matrix precision, a and b the rows less their common mean, so
    that what cancels is of the size of the spread of the data and not of their distance from the origin.
    """
    centre = (jnp.mean(x, axis=0, keepdims=True) + jnp.mean(y, axis=0, keepdims=True)) / 2
    a, b = x - centre, y - centre
    # The tensor cores' default precision (TF32) has 10 bits, fewer than neighbouring costs differ by.
    inner = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :]
    return jnp.maximum(norms - 2 * inner, 0)


@jax.jit
def permutation_pairing(
    x0: Float[Array, "rows size"], x1: Float[Array, "rows size"], source_index: Int32[Array, "rows"]
) -> Pairing:
    """The pairing of ``x0[source_index]`` with x1 in its order, ``source_index`` a permutation."""
    cost = jnp.mean(jnp.sum((x0[source_index] - x1) ** 2, axis=1))
    return Pairing(
        source_index=source_index,
        target_index=jnp.arange(x1.shape[0], dtype=jnp.int32),
        weight=None,
        converged=jnp.isfinite(cost),
        cost=cost,
        marginal_error=jnp.zeros((), cost.dtype),
    )


def _check_cond(name: str, cond: Any, end: str, x: Array | np.ndarray) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        if np.ndim(leaf) < 1 or leaf.shape[0] != x.shape[0]:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have one row for each row of {end}, "
                f"got shape {np.shape(leaf)} for {end} of shape {np.shape(x)}"
            )
