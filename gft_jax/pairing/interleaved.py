"""Batches of two streams in one: new data, and samples of the base model that are rehearsed."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gft_jax.pairing.stream import Batches
from gft_jax.types import Batch


def interleaved(new: Batches, replay: Batches, *, every: int) -> Batches:
    """Batches of two streams: the rows 0, ``every``, 2 ``every``, ... come from ``replay``, the others from ``new``.

    For methods that rehearse samples of the base model while they learn new data
    (`gft_jax.objectives.with_replay`). With a batch of n rows, ``new`` must give ``n (every - 1) / every`` rows and
    ``replay`` ``n / every``. The streams should have different seeds, or their noise is the same. Both must have the
    same fields: conditions of the same structure, row weights in both or in neither.

    What else goes by the places of rows meets these: with ``every=4`` the rows with s > t of
    `gft_jax.objectives.mean_flow` at its ``same_time=0.75`` would be the replayed ones, and no others. Choose an
    ``every`` that has no divisor in common with the denominator of ``same_time``.

    ``pairing`` and ``diagnose`` of the result are those of ``new`` alone: they count the new rows, not those of the
    batch.

    Args:
        new: stream of the new data.
        replay: stream of the replayed samples.
        every: at least 2.

    Raises:
        ValueError: for ``every`` < 2; from the first batch, if the streams have other shares of rows, or fields of
            different structure.
    """
    if every < 2:
        raise ValueError(f"every counts rows, of which one is replayed, and must be >= 2, got {every}")
    return Batches(
        lambda step: _join(new.batch(step), replay.batch(step), every, 0),
        lambda first, count: _join(new.many(first, count), replay.many(first, count), every, 1),
        new.pairing,
        new.diagnose,
    )


@functools.partial(jax.jit, static_argnums=(2, 3))  # one program for all streams of the same shapes
def _join(new: Batch, replay: Batch, every: int, axis: int) -> Batch:
    num_new, num_replay = new.x0.shape[axis], replay.x0.shape[axis]
    if num_new != num_replay * (every - 1):
        raise ValueError(
            f"with every={every} a batch needs {every - 1} new rows for each replayed one, got streams of "
            f"{num_new} new and {num_replay} replayed rows"
        )
    for name, *both in zip(Batch._fields, new, replay, strict=True):
        of_new, of_replay = map(jax.tree.structure, both)
        if of_new != of_replay:
            raise ValueError(
                f"both streams must have the same {name}: for new rows it is {of_new}, for replayed rows {of_replay} "
                "(PyTreeDef(None) means that there is none)"
            )

    def place(new_leaf: Array, replay_leaf: Array) -> Array:
        before, after = new_leaf.shape[:axis], new_leaf.shape[axis + 1 :]
        groups = new_leaf.reshape(*before, num_replay, every - 1, *after)
        replayed = jnp.expand_dims(replay_leaf, axis + 1)
        whole = jnp.concatenate([replayed, groups], axis + 1)
        return whole.reshape(*before, num_replay * every, *after)

    return jax.tree.map(place, new, replay)
