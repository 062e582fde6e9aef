"""Semi-discrete optimal transport: for each x0 drawn, an x1 is chosen out of the whole dataset."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gft_jax.couplings.base import Pairing, squared_distances

MAX_HELD = 2**24
"""Largest number of squared distances that are held at once while rows are chosen: 64 MiB in float32."""


class SemidiscretePotentials(NamedTuple):
    """What decides which row of a dataset is chosen for an x0; all arrays, so that it can be saved with a run."""

    dual: Array
    """Dual potential g of each row of the dataset ``[num]``, with mean 0, in the square of the data's unit."""
    mark: Array
    """A number for each row of the dataset ``[num]``, by which another dataset is told apart."""
    epsilon: Array
    """Strength of the entropic term, in the square of the data's unit; 0 for a choice that is not random."""
    cost: Array
    """Mean squared distance ``E |x0 - x1|^2`` (sum over the event) of x0 and the row chosen, in the square of the
    data's unit: the mean over fresh source rows."""
    marginal_error: Array
    """``(num sum_j (p_j - 1/num)^2)^(1/2)``, where row j is chosen with probability ``p_j``: not below the L1 error
    ``sum_j |p_j - 1/num|``, and about 1.25 times it where the errors are normal. Estimated on fresh source rows."""
    converged: Array
    """Whether the marginal error is within the tolerance that was asked for."""


def choose(
    key: Key[Array, "*rows"],
    potentials: SemidiscretePotentials,
    x0: Shaped[Array | np.ndarray, "..."],
    x1: Shaped[Array | np.ndarray, "..."],
) -> Pairing:
    """The pairing of sources with rows of the whole dataset: x0 keeps its order, and each row of it chooses an x1.

    A choice depends on its own x0 and its own key alone, and on no other row. Over the law of the source the rows of
    x1 are chosen with equal probabilities, up to ``marginal_error``; in a batch one may be chosen several times.

    ``source_index`` is ``arange(rows)``, ``target_index`` points into the dataset. ``cost`` is the mean over these x0
    of the expected squared distance, ``entropy`` that of the entropy of the choice of x1, in nats; ``marginal_error``
    and ``converged`` are those of the potentials, and ``converged`` is False for ends that are not finite.

    Args:
        key: of the draws where epsilon > 0; one, or one a row.
        potentials: of `fit_semidiscrete` for this dataset and the source of x0; they may be traced.
        x0: sources ``[rows, *event]``. Distances are held for a chunk of rows at a time, so that any number will do.
        x1: the dataset ``[num, *event]``.

    Raises:
        ValueError: if the potentials have another number of rows than the dataset, or x0 another event.
    """
    if potentials.dual.shape != (len(x1),):
        raise ValueError(
            f"the potentials are those of {potentials.dual.shape[0]} rows, and the dataset has {len(x1)}: give the "
            "dataset that they were fitted to, or fit them to this one (gft_jax.couplings.fit_semidiscrete)"
        )
    if len(x0) == 0 or np.shape(x0)[1:] != np.shape(x1)[1:]:
        raise ValueError(
            f"x0 must be [rows, *event] with rows >= 1 and the event of x1, got x0 {np.shape(x0)} and x1 {np.shape(x1)}"
        )
    sources, points = (jax.lax.stop_gradient(flat_rows(x)) for x in (x0, x1))
    dtype = jnp.promote_types(sources.dtype, points.dtype)
    return _choose(key, potentials, sources.astype(dtype), points.astype(dtype))


def check_dataset_of(potentials: SemidiscretePotentials, x1: Shaped[Array | np.ndarray, "..."]) -> None:
    """Refuses potentials of another dataset, or of the same rows in another order.

    Raises:
        ValueError: that says what differs.
    """
    remedy = "give the dataset that they were fitted to, or fit them to this one (gft_jax.couplings.fit_semidiscrete)"
    num = len(potentials.dual)
    if num != len(x1):
        raise ValueError(f"the potentials are those of {num} rows, and the dataset has {len(x1)}: {remedy}")
    theirs, ours = np.asarray(potentials.mark), np.asarray(marks(flat_rows(x1)))
    differing = np.flatnonzero(~(np.abs(theirs - ours) <= 1e-4 * (1e-30 + np.max(np.abs(ours)))))
    if len(differing):
        raise ValueError(
            f"the potentials are those of another dataset, or of these rows in another order: {len(differing)} of "
            f"{num} rows differ (the first: {differing[:5].tolist()}): {remedy}"
        )


@jax.jit
def _choose(key: Key[Array, "*rows"], potentials: SemidiscretePotentials, x0: Array, x1: Array) -> Pairing:
    rows, size = len(x0), min(len(x0), max(1, MAX_HELD // len(x1)))
    num_chunks = -(-rows // size)
    index = jnp.arange(num_chunks * size).reshape(num_chunks, size) % rows  # the last chunk is filled up
    keys = key if key.ndim else jax.random.split(key, rows)
    centre = jnp.mean(x1, axis=0, keepdims=True)  # of the dataset alone: no row of x0 may matter to another

    def of_chunk(chunk: Array) -> tuple[Array, Array, Array]:
        squared = squared_distances(x0[chunk], x1, centre)
        return _choice(keys[chunk], potentials.dual - squared, squared, potentials.epsilon)

    target, cost, entropy = (leaf.reshape(-1)[:rows] for leaf in jax.lax.map(of_chunk, index))
    mean_cost = jnp.mean(cost)
    return Pairing(
        source_index=jnp.arange(rows, dtype=jnp.int32),
        target_index=target.astype(jnp.int32),
        weight=None,
        converged=potentials.converged & jnp.isfinite(mean_cost),
        cost=mean_cost,
        marginal_error=potentials.marginal_error,
        entropy=jnp.mean(entropy),
    )


def _choice(
    keys: Key[Array, "rows"],
    score: Float[Array, "rows num"],
    squared: Float[Array, "rows num"],
    epsilon: Float[Array, ""],
) -> tuple[Int[Array, "rows"], Float[Array, "rows"], Float[Array, "rows"]]:
    """Row chosen, expected squared distance, and entropy of the choice."""

    def hard() -> tuple[Array, Array, Array]:
        best = jnp.argmax(score, axis=1)
        return best, squared[jnp.arange(len(score)), best], jnp.zeros(len(score), score.dtype)

    def soft() -> tuple[Array, Array, Array]:
        logits = score / epsilon
        law = jax.nn.softmax(logits, axis=1)
        entropy = -jnp.sum(jax.scipy.special.xlogy(law, law), axis=1)
        return jax.vmap(jax.random.categorical)(keys, logits), jnp.sum(law * squared, axis=1), entropy

    return jax.lax.cond(epsilon > 0, soft, hard)


def marks(points: Float[Array, "num size"]) -> Float[Array, "num"]:
    """A weighted sum of each row, with weights that no rotation, reflection or order of pixels leaves as they are."""
    weights = jnp.cos(jnp.arange(points.shape[1], dtype=points.dtype))
    return jnp.matmul(points, weights, precision=jax.lax.Precision.HIGHEST)


def flat_rows(x: Shaped[Array | np.ndarray, "..."]) -> Float[Array, "rows size"]:
    """Rows as ``[rows, size of the event]``, in single precision at least."""
    rows = jnp.asarray(x)
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32)).reshape(rows.shape[0], -1)
