"""Batches of drawn sources, each with the row of the dataset that semi-discrete transport chooses for it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.couplings import (
    Diagnostics,
    Pairing,
    SemidiscretePotentials,
    apply,
    choose,
)
from gft_jax.couplings.base import check_source, split_arrays
from gft_jax.couplings.semidiscrete import check_dataset_of
from gft_jax.data import Rows, in_memory
from gft_jax.pairing.checks import check_stream, checked_step, checked_steps
from gft_jax.pairing.dropout import dropout_of, dropped
from gft_jax.pairing.order import WHOLE, Share
from gft_jax.pairing.sources import Source, standard_normal
from gft_jax.pairing.stream import Batches, diagnosis
from gft_jax.sampling.row_keys import row_keys as keys_by_row
from gft_jax.types import Batch


class _Programs(NamedTuple):
    """Compiled; ``(key, dropout, arrays of the source, potentials, (dataset, cond), step or steps)``."""

    one: Callable[..., tuple[Pairing, Batch]]
    many: Callable[..., Batch]


def chosen_batches(
    x1: Array | np.ndarray | Rows,
    potentials: SemidiscretePotentials,
    *,
    batch_size: int,
    seed: int,
    source: Source | None = None,
    cond: Any = None,
    num_classes: int | Mapping[str, int] | None = None,
    cond_dropout: float = 0.0,
    null_cond: Any = None,
    share: Share = WHOLE,
) -> Batches:
    """Training batches under the semi-discrete coupling of a source and a whole dataset::

        source = gft.pairing.standard_normal(data.shape[1:])
        potentials = gft.couplings.fit_semidiscrete(jax.random.key(0), data, source)
        gft.couplings.require_converged(potentials)
        stream = gft.pairing.chosen_batches(data, potentials, batch_size=256, seed=0)

    x0 is drawn as in `batches`: with the same seed the two have the same x0 and the same noise at every step. x1 is
    not the next row of the dataset, but the one that `gft_jax.couplings.choose` finds for x0. So the rows of x0 have
    the law of the source exactly and are independent of each other; those of x1 are uniform over the dataset up to the
    potentials' ``marginal_error``, and not one epoch after another: in as many draws as there are rows, about 63 % of
    them occur.

    The whole dataset is put on the device, rows that lie in files too. There is no ``augment``, since the potentials
    are those of the rows as they are: fit them to a dataset that holds each image and its mirror image. ``pairing``
    points into the dataset: its ``target_index`` are rows of it. ``diagnose`` looks at the rows of the batch alone, and
    ``distinct_targets`` is the share of them that are different rows of the dataset.

    Args:
        x1: the dataset ``[num, *event]`` that the potentials were fitted to, in the same order.
        potentials: of `gft_jax.couplings.fit_semidiscrete`, now or restored (`gft_jax.checkpoints.load_params`).
        batch_size: rows of a batch (over all devices).
        seed: fixes source rows, choices and all randomness of the training steps.
        source: draws the source rows, the one of the fit; default ``N(0, I)`` in the shape and dtype of the data.
        cond: conditions that follow the data: a pytree of ``[num, ...]``.
        num_classes: if given, ``cond`` is one array of integer labels in [0, num_classes), and is checked; or numbers
            of classes by the names of those entries of ``cond`` that are labels.
        cond_dropout: as in `batches`.
        null_cond: as in `batches`.
        share: which rows of every batch the stream gives, as in `batches`; a row's choice is the same in any share.

    Raises:
        ValueError: for potentials of another dataset, and as `batches`.
    """
    check_stream(x1, cond, batch_size, seed, num_classes)
    whole = in_memory(x1)
    check_dataset_of(potentials, whole)
    dropout = dropout_of(cond_dropout, null_cond, cond, num_classes)
    dataset = jax.tree.map(lambda rows: jnp.asarray(in_memory(rows)), (whole, cond))
    event_shape = tuple(x1.shape[1:])
    if source is not None:
        check_source(source, event_shape)
    arrays, programs = _programs(source, event_shape, dataset[0].dtype, batch_size, share)
    key = jax.random.key(seed)

    def at(step: SupportsIndex) -> tuple[Pairing, Batch]:
        return programs.one(key, dropout, arrays, potentials, dataset, np.uint32(checked_step(step)))

    def many(first_step: SupportsIndex, count: SupportsIndex) -> Batch:
        first_step, count = checked_step(first_step), checked_steps(count)
        steps = np.arange(first_step, first_step + count, dtype=np.uint32)
        return programs.many(key, dropout, arrays, potentials, dataset, steps)

    def diagnosed(step: SupportsIndex) -> Diagnostics:
        pairing, batch = at(step)
        # Rows of the batch stand for rows of the dataset: the first of those that are the same one.
        _, first, inverse = np.unique(pairing.target_index, return_index=True, return_inverse=True)
        local = pairing._replace(target_index=jnp.asarray(first[inverse.reshape(-1)], jnp.int32))
        return diagnosis(local, batch.x0, dataset[0][pairing.target_index])

    return Batches(lambda step: at(step)[1], many, lambda step: at(step)[0], diagnosed)


def _programs(
    source: Source | None, event_shape: tuple[int, ...], dtype: Any, batch_size: int, share: Share
) -> tuple[Any, _Programs]:
    """Arrays of the source, and the programs; those of N(0, I) are shared by all streams of the same shapes."""
    if source is None:
        return None, _shared(event_shape, dtype, batch_size, share)
    arrays, static = split_arrays(source)
    return arrays, _compiled(static, batch_size, share)


@functools.lru_cache(maxsize=8)
def _shared(event_shape: tuple[int, ...], dtype: Any, batch_size: int, share: Share) -> _Programs:
    return _compiled(standard_normal(event_shape, dtype), batch_size, share)


def _compiled(static: Any, batch_size: int, share: Share) -> _Programs:
    own = share.rows(batch_size)

    def pair(
        key: Key[Array, ""],
        dropout: Any,
        arrays: Any,
        potentials: SemidiscretePotentials,
        dataset: tuple[Array, Any],
        step: Array,
    ) -> tuple[Pairing, Batch]:
        key_step = jax.random.fold_in(key, step)
        keys_of_rows = keys_by_row(key_step, batch_size)[own]
        keys = jax.vmap(jax.random.split)(keys_of_rows)
        source = static if arrays is None else eqx.combine(arrays, static)
        x0, source_cond = source(keys[:, 0])
        # Apart from the keys of the rows, whose numbers are smaller.
        keys_choice = jax.random.split(jax.random.fold_in(key_step, 2**32 - 1), batch_size)[own]
        pairing = choose(keys_choice, potentials, x0, dataset[0])
        x0, rows, row_cond, source_cond = apply(pairing, x0, *dataset, source_cond)
        row_cond = dropped(dropout, keys_of_rows, row_cond)
        return pairing, Batch(x0, rows, keys[:, 1], row_cond, source_cond)

    def pair_many(
        key: Key[Array, ""],
        dropout: Any,
        arrays: Any,
        potentials: SemidiscretePotentials,
        dataset: tuple[Array, Any],
        steps: Array,
    ) -> Batch:
        # One after another: side by side, all of them would hold their distances to the dataset at once.
        return jax.lax.map(lambda step: pair(key, dropout, arrays, potentials, dataset, step)[1], steps)

    return _Programs(jax.jit(pair), jax.jit(pair_many))
