"""What a coupling is and returns, and what all couplings share: checks, squared distances, moving rows."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
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
    """Row of x1 in each pair ``[rows]``; ``arange(rows)`` wherever x1 keeps its order. Of `gft_jax.couplings.choose`,
    the row of the dataset."""
    weight: Array | None
    """Weight >= 0 of each pair ``[rows]`` in the loss, with mean 1; None means one each."""
    converged: Array
    """Whether the pairing is what the coupling promises; False after too few iterations, or, inside jit, for
    ends that are not finite. `gft_jax.couplings.require_converged` makes it an error that names the remedy."""
    cost: Array
    """Mean squared distance ``|x0 - x1|^2`` (sum over the event, mean over pairs by their weights) under the plan that
    the pairs come from: for a permutation the pairs themselves, for pairs drawn at random its expectation over the
    draw. Whatever else a coupling minimises, such as a penalty on conditions, is left out."""
    marginal_error: Array
    """``sum_i |sum_j P_ij - 1/rows| + sum_j |sum_i P_ij - 1/rows|`` of the plan P; 0 for a permutation. Where a
    marginal is relaxed, the distance from the marginal that is optimal for the plan's own potentials. Of a choice out
    of a whole dataset, an upper bound that belongs to the potentials: see `SemidiscretePotentials`."""
    entropy: Array
    """Of the plan that the pairs are made from: mean over the rows of x1 of the entropy of ``P_ij / sum_i P_ij``, in
    nats; ``log(rows)`` where all partners are equally probable, and 0 where there is no plan. Where x1 is chosen for
    x0, the mean over the rows of x0 of the entropy of the choice."""


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


@runtime_checkable
class PenalisedCoupling(Coupling, Protocol):
    """A coupling that minimises a cost, and takes a penalty to be added to it: an inner one for conditions.

    It minimises ``|x0_i - x1_j|^2 / m + penalty[i, j]``, m the mean of the squared distances over all pairs of the
    batch. The penalty is ``[rows of x0, rows of x1]``, >= 0, and inf where a pair is forbidden.
    """

    def __call__(
        self,
        key: Key[Array, ""],
        x0: Array | np.ndarray,
        x1: Array | np.ndarray,
        cond: Any = None,
        source_cond: Any = None,
        /,
        *,
        penalty: Array | None = None,
    ) -> Pairing:
        """Pairing of the rows of x0 with the rows of x1."""
        ...


def name_of(coupling: Coupling) -> str:
    """What to call a coupling in a message: the function, without the arrays that are bound to it."""
    function = getattr(coupling, "func", coupling)
    return getattr(function, "__qualname__", type(function).__name__).removeprefix("_")


MAX_ROWS = 16_384
"""Largest number of rows that are coupled by a matrix of costs: one such matrix takes 1 GiB in float32."""


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
        ValueError: as `check_ends`.
    """
    check_ends(x0, x1)
    a, b = jnp.asarray(x0), jnp.asarray(x1)
    dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)

    def flatten(x: Array) -> Array:
        return jax.lax.stop_gradient(x.astype(dtype).reshape(x.shape[0], -1))

    return flatten(a), flatten(b)


def check_ends(x0: Shaped[Array | np.ndarray, "..."], x1: Shaped[Array | np.ndarray, "..."]) -> None:
    """Refuses ends of different shapes.

    Raises:
        ValueError: unless both are ``[rows, *event]`` of one shape with ``rows >= 1``.
    """
    if np.shape(x0) != np.shape(x1) or np.ndim(x0) < 1 or len(x0) == 0:
        raise ValueError(
            "x0 and x1 must have the same shape [rows, *event] with rows >= 1, "
            f"got x0 {np.shape(x0)} and x1 {np.shape(x1)}: draw one source row for each row of data"
        )


def check_dense(x0: Shaped[Array | np.ndarray, "..."], x1: Shaped[Array | np.ndarray, "..."]) -> None:
    """Refuses ends whose cost matrix, of which solvers hold several, would exhaust the memory.

    Raises:
        ValueError: as `check_ends`, and for more than `MAX_ROWS` rows.
    """
    check_ends(x0, x1)
    rows = len(x0)
    if rows > MAX_ROWS:
        raise ValueError(
            f"x0 and x1 have {rows} rows: a cost matrix of {rows} x {rows} takes {rows**2 * 4 / 2**30:.1f} GiB in "
            f"float32, and several are held. At most {MAX_ROWS} rows can be coupled at once: pair a large dataset "
            f"in batches (gft_jax.pairing.batches with a smaller batch_size), choose x1 out of all of it for each x0 "
            f"(gft_jax.couplings.fit_semidiscrete and gft_jax.pairing.chosen_batches), or use independent()"
        )


def check_source(source: Callable[..., tuple[Any, Any]], event_shape: tuple[int, ...]) -> None:
    """Refuses a source, keys ``[rows]`` -> ``(x0, source_cond)``, of another event than that of the data.

    Raises:
        ValueError: with both shapes.
    """
    x0, _ = jax.eval_shape(source, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)))
    if tuple(x0.shape[1:]) != event_shape:
        raise ValueError(
            f"source and data must have events of one shape: x0 rows have {tuple(x0.shape[1:])}, "
            f"x1 rows have {event_shape}"
        )


def by_matrix(pair: Callable[[Array, Array, Array, Array | None], Pairing]) -> PenalisedCoupling:
    """The coupling that checks its ends and hands them on flat, ``pair(key, x0, x1, penalty)``."""

    def couple(
        key: Key[Array, ""],
        x0: Shaped[Array | np.ndarray, "..."],
        x1: Shaped[Array | np.ndarray, "..."],
        cond: Any = None,
        source_cond: Any = None,
        *,
        penalty: Array | None = None,
    ) -> Pairing:
        check_dense(x0, x1)
        return pair(key, *flat_ends(x0, x1), penalty)

    return couple


@jax.jit
def squared_distances(
    x: Float[Array, "num_x size"], y: Float[Array, "num_y size"], centre: Float[Array, "1 size"] | None = None
) -> Float[Array, "num_x num_y"]:
    """Matrix of squared distances ``|x_i - y_j|^2``.

    Computed as ``|a|^2 + |b|^2 - 2 a.b`` with full matrix precision, a and b the rows less ``centre``, by default their
    common mean, so that what cancels is of the size of the data's spread and not of their distance from the origin.
    """
    if centre is None:
        centre = (jnp.mean(x, axis=0, keepdims=True) + jnp.mean(y, axis=0, keepdims=True)) / 2
    a, b = x - centre, y - centre
    # The tensor cores' default precision (TF32) has 10 bits, fewer than neighbouring costs differ by.
    inner = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :]
    return jnp.maximum(norms - 2 * inner, 0)


def mean_squared_distance(x: Float[Array, "num_x size"], y: Float[Array, "num_y size"]) -> Float[Array, ""]:
    """Mean of ``|x_i - y_j|^2`` over all pairs, without a matrix of them."""
    apart = jnp.sum((jnp.mean(x, axis=0) - jnp.mean(y, axis=0)) ** 2)
    return apart + jnp.sum(jnp.var(x, axis=0) + jnp.var(y, axis=0))


def split_arrays(tree: Any) -> tuple[Any, Any]:
    """A pytree's arrays, to be arguments of a program, and the rest of it; ``equinox.combine`` joins them again."""
    return eqx.partition(tree, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))


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
        entropy=jnp.zeros((), cost.dtype),
    )


def penalised(
    squared: Float[Array, "rows rows"], penalty: Shaped[Array, "rows rows"] | None
) -> Float[Array, "rows rows"]:
    """The cost in units of the mean squared distance, ``squared / mean(squared) + penalty``.

    Where all points coincide the mean is 0, and every plan is optimal but for the penalty: the unit is then 1.
    """
    mean = jnp.mean(squared)
    scaled = squared / jnp.where(mean > 0, mean, 1)
    return scaled if penalty is None else scaled + penalty.astype(squared.dtype)


def check_positive(name: str, value: float) -> None:
    """Refuses a hyperparameter that is not positive and finite.

    Raises:
        ValueError: with its name and value.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_cond(name: str, cond: Any, end: str, x: Array | np.ndarray) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        if np.ndim(leaf) < 1 or leaf.shape[0] != x.shape[0]:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have one row for each row of {end}, "
                f"got shape {np.shape(leaf)} for {end} of shape {np.shape(x)}"
            )
