"""Batches of a dataset: its rows in the order of the step, source rows drawn, both coupled."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.couplings import Coupling, Diagnostics, Pairing, apply, diagnose, exact, sinkhorn
from gft_jax.couplings.base import check_source, flat_ends, permutation_pairing, split_arrays
from gft_jax.data import Augmentation, Rows
from gft_jax.pairing.augmenting import augmented, check_augmentation
from gft_jax.pairing.checks import check_integer, check_stream, checked_step, checked_steps
from gft_jax.pairing.dropout import dropout_of, dropped
from gft_jax.pairing.order import WHOLE, Share, row_order
from gft_jax.pairing.sources import Source, standard_normal
from gft_jax.sampling.row_keys import row_keys as keys_by_row
from gft_jax.types import Batch

MAX_EXACT_ROWS = 2048
"""Largest pairing whose diagnostics count the exact coupling as optimal; above it, ``sinkhorn(0.002)``."""


def _no_pairing(step: int) -> Any:
    raise ValueError("batches of this stream have no pairing: its rows are not coupled")


class Batches(NamedTuple):
    """An endless stream of training batches, addressed by the training step."""

    batch: Callable[[int], Batch]
    """The batch of a step."""
    many: Callable[[int, int], Batch]
    """``(first_step, count)`` -> ``count`` batches stacked along a new leading axis, for ``step_many``."""
    pairing: Callable[[int], Pairing] = _no_pairing
    """The pairing that the batch of a step comes from, with its cost, marginal error and whether it converged."""
    diagnose: Callable[[int], Diagnostics] = _no_pairing
    """Its diagnostics, which take as long as the pairing and an optimal one besides: up to 2048 rows the exact one, and
    above ``sinkhorn(0.002)``, whose cost is somewhat above that (``excess`` is then too small, and may be below 0)."""


class _Programs(NamedTuple):
    """Compiled; ``arrays`` are those of source, coupling and augmentation."""

    ends: Callable[..., tuple[Any, Any, Any, Any]]
    """``(key, arrays, steps, rows)`` -> keys of the rows, x0, source_cond and x1, before the coupling moves them."""
    one: Callable[..., tuple[Pairing, Batch]]
    """``(key, dropout, arrays, steps, rows, cond)`` -> pairing and rows of all of these steps."""
    many: Callable[..., Batch]
    """The same for several of them, stacked; the rows alone."""


def batches(
    x1: Array | np.ndarray | Rows,
    *,
    batch_size: int,
    seed: int,
    coupling: Coupling | None = None,
    pair_size: int | None = None,
    source: Source | None = None,
    cond: Any = None,
    num_classes: int | Mapping[str, int] | None = None,
    cond_dropout: float = 0.0,
    null_cond: Any = None,
    augment: Augmentation | None = None,
    share: Share = WHOLE,
) -> Batches:
    """Training batches from a dataset in memory or in files.

    Args:
        x1: dataset ``[num, *event]``: an array, or any other `gft_jax.data.Rows`, whose rows are read when their batch
            is made, and read once before, to see that all are finite, unless they are so by construction. Fewer rows
            than ``batch_size`` are normal (few-shot): rows then repeat within a batch, in reshuffled order.
        batch_size: rows of a batch (over all devices).
        seed: fixes order, source rows, coupling and all randomness of the training steps.
        coupling: pairs source and data; it is called under jit. By default the rows stay as drawn, which is the
            independent coupling, since sources are drawn without a look at the data. Arrays of a coupling, or source,
            that is a pytree (`jax.tree_util.Partial`, an Equinox module) are arguments of the program and not
            constants in it.
        pair_size: rows that are coupled at once, a multiple of ``batch_size``, which is the default: the rows of
            several steps are paired together, and each step gets its own rows of x1. The larger, the nearer are the
            pairs of `exact` to optimal transport between the laws, and the more a pairing costs: exact ones
            quadratically to cubically. The stream keeps the last two pairings; `ahead` computes the next one while
            the device trains. Neither data nor noise of a step depend on it, only who is paired with whom.
        source: draws the source rows; default ``N(0, I)`` in the shape and dtype of the data.
        cond: conditions that follow the data: a pytree of ``[num, ...]``.
        num_classes: if given, ``cond`` is one array of integer labels in [0, num_classes), and is checked; or numbers
            of classes by the names of those entries of ``cond`` that are labels.
        cond_dropout: probability in [0, 1] with which a row's condition is replaced by the null condition, as
            classifier-free guidance needs (`gft_jax.drifts.guide`); 0.1 is customary. It is decided after the
            coupling, which sees the true conditions, and by the row's own key, without a change to its noise. An
            objective that compares student and base gives both the condition of the batch, dropped or not.
        null_cond: the null condition, like one row of ``cond`` (leaves ``[...]`` where cond has ``[num, ...]``); for
            labels mostly ``num_classes``, which is then no class; see `gft_jax.networks.null_condition`.
        augment: changes each row of the data at random, such as `gft_jax.data.horizontal_flip`, by a key that comes
            from the row's own: what is done to a row of a step depends on seed, step and its place in the batch alone.
            It stands before the coupling, so that what is paired is what is trained on. Like a coupling, it is called
            under jit, and may be a pytree.
        share: which rows of every batch the stream reads and gives (`gft_jax.parallel.share`); together the shares are
            the whole batch, row by row and in order. Each is coupled within itself, as by ``per_shard(coupling,
            share.num_parts)`` of `gft_jax.couplings` on the whole batch (with ``pair_size``, the share's rows of all
            its steps). One plan over all rows: `share_of` a whole stream.

    Raises:
        ValueError: for empty or non-finite data (how many values, and the first rows that hold them), labels out
            of range, conditions of another length or not finite, source rows of another shape, a batch size below one,
            a negative seed, a pair size that is no multiple of the batch size or has no coupling; for dropout outside
            [0, 1], without conditions or without a null condition like theirs, a null condition without dropout, or
            one that is a class; for an augmentation that changes shape or dtype of a row; for a share that there is
            not, or a batch that does not divide into shares.

    Source of the dropout: Ho and Salimans, "Classifier-free diffusion guidance", arXiv:2207.12598, algorithm 1.
    """
    check_stream(x1, cond, batch_size, seed, num_classes)
    steps_a_pairing = _steps_a_pairing(pair_size, batch_size, coupling)
    dropout = dropout_of(cond_dropout, null_cond, cond, num_classes)
    event_shape, dtype = tuple(x1.shape[1:]), jax.dtypes.canonicalize_dtype(x1.dtype)
    if source is not None:
        check_source(source, event_shape)
    check_augmentation(augment, event_shape, dtype)
    own = share.rows(batch_size)
    arrays, programs = _programs(source, (coupling, augment), event_shape, dtype, batch_size, share)
    key = jax.random.key(seed)

    def steps_of(number: int) -> np.ndarray:
        return np.arange(number * steps_a_pairing, (number + 1) * steps_a_pairing, dtype=np.uint32)

    def rows_of_pairing(number: int) -> Any:
        # The rows of several steps are those of one large step.
        index = row_order(len(x1), batch_size * steps_a_pairing, seed, number)
        index = index.reshape(steps_a_pairing, batch_size)[:, own].reshape(-1)
        return x1[index], jax.tree.map(lambda leaf: leaf[index], cond)

    def paired(number: int) -> tuple[Pairing, Batch]:
        return programs.one(key, dropout, arrays, steps_of(number), *rows_of_pairing(number))

    def pairing(step: SupportsIndex) -> Pairing:
        return paired(checked_step(step) // steps_a_pairing)[0]

    def diagnosed(step: SupportsIndex) -> Diagnostics:
        number = checked_step(step) // steps_a_pairing
        _, x0, _, rows = programs.ends(key, arrays, steps_of(number), rows_of_pairing(number)[0])
        return diagnosis(pairing(step), x0, rows)

    def many(first_step: SupportsIndex, count: SupportsIndex) -> Batch:
        first_step, count = checked_step(first_step), checked_steps(count)
        steps = range(first_step, first_step + count)
        rows = [rows_of_pairing(step) for step in steps]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        return programs.many(key, dropout, arrays, np.asarray(steps, np.uint32)[:, None], *stacked)

    if steps_a_pairing == 1:
        return Batches(lambda step: paired(checked_step(step))[1], many, pairing, diagnosed)

    # Kept, since the steps of a pairing come one after another, and chunks of steps may end within one.
    paired = functools.lru_cache(maxsize=2)(paired)

    def many_of_large(first_step: SupportsIndex, count: SupportsIndex) -> Batch:
        first_step, count = checked_step(first_step), checked_steps(count)
        numbers = range(first_step // steps_a_pairing, (first_step + count - 1) // steps_a_pairing + 1)
        rows = [paired(number)[1] for number in numbers]
        return _cut(rows, np.uint32(first_step % steps_a_pairing), count, own.stop - own.start)

    def one_of_large(step: SupportsIndex) -> Batch:
        step = checked_step(step)
        offset = np.uint32(step % steps_a_pairing)
        return _cut([paired(step // steps_a_pairing)[1]], offset, None, own.stop - own.start)

    return Batches(one_of_large, many_of_large, pairing, diagnosed)


def diagnosis(pairing: Pairing, x0: Array | np.ndarray, x1: Array | np.ndarray) -> Diagnostics:
    """Diagnostics of a stream's pairing, beside a coupling that can be had for so many rows."""
    return diagnose(pairing, x0, x1, optimal=exact() if len(x1) <= MAX_EXACT_ROWS else sinkhorn(0.002))


def _programs(
    source: Source | None,
    moves: tuple[Coupling | None, Augmentation | None],
    event_shape: tuple[int, ...],
    dtype: Any,
    batch_size: int,
    share: Share,
) -> tuple[Any, _Programs]:
    """Arrays of source, coupling and augmentation, and the programs that take them.

    Programs of streams from N(0, I) are shared by all that differ in data, seed and arrays alone. Those of other
    sources are not: to remember the program would be to keep the source, and the dataset it may hold.
    """
    arrays, static = split_arrays((source, *moves))
    if source is not None:
        return arrays, _compiled(static, batch_size, share)
    leaves, structure = jax.tree.flatten(static[1:])
    try:
        programs = _shared(event_shape, dtype, tuple(leaves), structure, batch_size, share)
    except TypeError:  # a coupling or an augmentation that cannot be hashed
        programs = _compiled((standard_normal(event_shape, dtype), *static[1:]), batch_size, share)
    return arrays, programs


@functools.lru_cache(maxsize=8)
def _shared(
    event_shape: tuple[int, ...],
    dtype: Any,
    leaves: tuple[Any, ...],
    structure: Any,
    batch_size: int,
    share: Share,
) -> _Programs:
    moves = jax.tree.unflatten(structure, leaves)
    return _compiled((standard_normal(event_shape, dtype), *moves), batch_size, share)


def _compiled(static: tuple[Any, Any, Any], batch_size: int, share: Share) -> _Programs:
    own = share.rows(batch_size)

    def ends(key: Key[Array, ""], arrays: Any, steps: Array, rows: Array) -> tuple[Any, Any, Any, Any]:
        source, _, augment = eqx.combine(arrays, static)
        keys_of_steps = jax.vmap(lambda step: keys_by_row(jax.random.fold_in(key, step), batch_size)[own])(
            steps
        )
        keys_of_rows = keys_of_steps.reshape(-1)
        x0, source_cond = source(jax.vmap(lambda key: jax.random.split(key)[0])(keys_of_rows))
        return keys_of_rows, x0, source_cond, augmented(augment, keys_of_rows, rows)

    def pair(
        key: Key[Array, ""], dropout: Any, arrays: Any, steps: Array, rows: Array, row_cond: Any
    ) -> tuple[Pairing, Batch]:
        _, coupling, _ = eqx.combine(arrays, static)
        keys_of_rows, x0, source_cond, rows = ends(key, arrays, steps, rows)
        if coupling is None:
            pairing = permutation_pairing(*flat_ends(x0, rows), jnp.arange(len(rows), dtype=jnp.int32))
        else:
            # A coupling has one key a pairing, apart from those of the rows, whose numbers are smaller.
            key_coupling = jax.random.fold_in(jax.random.fold_in(key, steps[0]), 2**32 - 1)
            if share.num_parts > 1:  # the key of `gft_jax.couplings.per_shard`
                key_coupling = jax.random.fold_in(key_coupling, share.part)
            pairing = coupling(key_coupling, x0, rows, row_cond, source_cond)
            x0, rows, row_cond, source_cond = apply(pairing, x0, rows, row_cond, source_cond)
        row_cond = dropped(dropout, keys_of_rows, row_cond)
        keys = jax.vmap(lambda key: jax.random.split(key)[1])(keys_of_rows)
        return pairing, Batch(x0, rows, keys, row_cond, source_cond, pairing.weight)

    def pair_many(key: Key[Array, ""], dropout: Any, arrays: Any, *steps: Any) -> Batch:
        def rows_of_step(*step: Any) -> Batch:
            return pair(key, dropout, arrays, *step)[1]

        if static[1] is None:
            return jax.vmap(rows_of_step)(*steps)
        # One after another: side by side, all of them would iterate as long as the slowest coupling.
        return jax.lax.map(lambda step: rows_of_step(*step), steps)

    return _Programs(jax.jit(ends), jax.jit(pair), jax.jit(pair_many))


@functools.partial(jax.jit, static_argnums=(2, 3))  # one program for all streams of the same shapes
def _cut(pairings: list[Batch], offset: Array, count: int | None, batch_size: int) -> Batch:
    """``count`` batches, stacked, out of the rows of successive pairings, from the offset (a number of batches) on.

    With None for the count it is a single batch, without the leading axis.
    """

    def cut(*leaves: Array) -> Array:
        stacked = [leaf.reshape(-1, batch_size, *leaf.shape[1:]) for leaf in leaves]
        whole = stacked[0] if len(stacked) == 1 else jnp.concatenate(stacked)
        if count is None:
            return jax.lax.dynamic_index_in_dim(whole, offset, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(whole, offset, count)

    return jax.tree.map(cut, *pairings)


def _steps_a_pairing(pair_size: int | None, batch_size: int, coupling: Coupling | None) -> int:
    if pair_size is None:
        return 1
    check_integer("pair_size", pair_size, batch_size)
    if pair_size % batch_size:
        raise ValueError(
            f"pair_size must be a multiple of batch_size, since a pairing serves whole batches, got "
            f"pair_size={pair_size} with batch_size={batch_size}"
        )
    if coupling is None:
        raise ValueError(f"pair_size={pair_size} needs a coupling, and coupling is None: rows stay as drawn")
    return pair_size // batch_size
