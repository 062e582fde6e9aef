"""The way of the data: dataset rows -> source rows drawn -> coupling -> `Batch`.

The order of the rows is a pure function of (seed, step), so that the step number is the position in the data:
nothing of it needs to be saved, and a resumed run sees the same batches.
"""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from gft_jax.conditions import check_rows, null_like
from gft_jax.couplings import Coupling, Pairing, apply
from gft_jax.couplings.base import flat_ends, permutation_pairing
from gft_jax.sampling.row_keys import row_keys as keys_by_row
from gft_jax.types import Batch

Source = Callable[[Key[Array, "rows"]], tuple[Array, Any]]
"""Draws source rows, each from its own key: keys ``[rows]`` -> ``(x0 [rows, *event], source_cond or None)``."""


_Programs = tuple[Callable[..., Any], Callable[..., Any]]
"""``(key, step, rows, cond)`` -> pairing and batch; the same for several steps -> stacked batches."""


class Batches(NamedTuple):
    """An endless stream of training batches, addressed by the training step."""

    batch: Callable[[int], Batch]
    """The batch of a step."""
    many: Callable[[int, int], Batch]
    """``(first_step, count)`` -> ``count`` batches stacked along a new leading axis, for ``step_many``."""
    pairing: Callable[[int], Pairing]
    """The pairing of a step alone, with its cost, marginal error and whether it converged."""


def standard_normal(event_shape: Sequence[int], dtype: Any = jnp.float32) -> Source:
    """Source rows ``x0 ~ N(0, I)``, ``[rows, *event_shape]``.

    Raises:
        ValueError: for a shape that is a number.
    """
    if isinstance(event_shape, numbers.Number):
        raise ValueError(
            f"event_shape is the shape of one sample, such as ({event_shape},), got {event_shape}"
        )
    event_shape = tuple(event_shape)

    def draw(keys: Key[Array, "rows"]) -> tuple[Array, None]:
        return jax.vmap(lambda key: jax.random.normal(key, event_shape, dtype))(keys), None

    return draw


def rows_of(x0: Array | np.ndarray, source_cond: Any = None) -> Source:
    """Source rows drawn with replacement from a dataset ``[num, *event]``, with their conditions, if any.

    Raises:
        ValueError: if the rows are empty or not finite, or a condition has another number of rows.
    """
    _check_rows("x0", x0)
    _check_cond("source_cond", source_cond, len(x0))
    rows, conds = jax.tree.map(jnp.asarray, (x0, source_cond))

    def draw(keys: Key[Array, "rows"]) -> tuple[Array, Any]:
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, rows.shape[0]))(keys)
        return jax.tree.map(lambda leaf: leaf[index], (rows, conds))

    return draw


def row_order(num_rows: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, "batch_size"]:
    """Indices of the dataset rows of a step.

    The stream is one reshuffled permutation of all rows after another, cut into batches without regard to
    where a permutation ends: each row is seen once per epoch, also if there are fewer rows than a batch holds.
    """
    epochs, offsets = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_rows)
    index = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = _permutation(num_rows, seed, int(epoch))[offsets[here]]
    return index


def row_keys(seed: int, step: Any, num_rows: int) -> Key[Array, "rows"]:
    """One key per row: ``fold_in(fold_in(key(seed), step), row)``; on many devices ``row`` is the global one."""
    return keys_by_row(jax.random.fold_in(jax.random.key(seed), step), num_rows)


def batches(
    x1: Array | np.ndarray,
    *,
    batch_size: int,
    seed: int,
    coupling: Coupling | None = None,
    source: Source | None = None,
    cond: Any = None,
    num_classes: int | None = None,
    cond_dropout: float = 0.0,
    null_cond: Any = None,
) -> Batches:
    """Training batches from a dataset held in memory.

    Args:
        x1: dataset ``[num, *event]``; fewer rows than ``batch_size`` are normal (few-shot): rows then repeat
            within a batch, in reshuffled order.
        batch_size: rows of a batch (over all devices).
        seed: fixes order, source rows, coupling and all randomness of the training steps.
        coupling: pairs source and data within a batch; it is called under jit. By default the rows stay as drawn, which
            is the independent coupling, since sources are drawn without a look at the data.
        source: draws the source rows; default ``N(0, I)`` in the shape and dtype of the data.
        cond: conditions that follow the data: a pytree of ``[num, ...]``.
        num_classes: if given, ``cond`` is one array of integer labels in [0, num_classes), and is checked.
        cond_dropout: probability in [0, 1] with which a row's condition is replaced by the null condition, as
            classifier-free guidance needs (`gft_jax.drifts.guide`); 0.1 is customary. It is decided after the
            coupling, which sees the true conditions, and by the row's own key, without a change to its noise. An
            objective that compares student and base gives both the condition of the batch, dropped or not.
        null_cond: the null condition, like one row of ``cond`` (leaves ``[...]`` where cond has ``[num, ...]``); for
            labels mostly ``num_classes``, which is then no class.

    Raises:
        ValueError: for empty or non-finite data (how many values, and the first rows that hold them), labels out
            of range, conditions of another length or not finite, source rows of another shape, a batch size below one,
            a negative seed; for dropout outside [0, 1], without conditions or without a null condition like
            theirs, a null condition without dropout, or one that is a class.

    Source of the dropout: Ho and Salimans, "Classifier-free diffusion guidance", arXiv:2207.12598, algorithm 1.
    """
    _check_rows("x1", x1)
    _check_cond("cond", cond, len(x1))
    _check_numbers(batch_size, seed)
    if num_classes is not None:
        _check_labels(cond, num_classes)
    dropout = _checked_dropout(cond_dropout, null_cond, cond, num_classes)
    event_shape = tuple(x1.shape[1:])
    if source is None:
        pair_one, pair_many = _from_noise(event_shape, jnp.asarray(x1[:1]).dtype, coupling, batch_size)
    else:
        _check_source(source, event_shape)
        pair_one, pair_many = _compiled(source, coupling, batch_size)
    key = jax.random.key(seed)

    def rows_at(index: np.ndarray) -> Any:
        return jax.tree.map(lambda leaf: leaf[index], (x1, cond))

    def one(step: int) -> tuple[Pairing, Batch]:
        return pair_one(key, dropout, np.uint32(step), *rows_at(row_order(len(x1), batch_size, seed, step)))

    def many(first_step: int, count: int) -> Batch:
        steps = range(first_step, first_step + count)
        index = np.stack([row_order(len(x1), batch_size, seed, step) for step in steps])
        return pair_many(key, dropout, np.asarray(steps, np.uint32), *rows_at(index))

    return Batches(lambda step: one(step)[1], many, lambda step: one(step)[0])


def source_batches(source: Source, *, batch_size: int, seed: int, cond: Any = None) -> Batches:
    """Batches of source rows alone, ``x1 = None``: for methods that make their own data, as reward fine-tuning does.

    The stream has no ``pairing``: asking for it is an error.

    Args:
        source: draws the source rows, e.g. `standard_normal`.
        batch_size: rows of a batch (over all devices).
        seed: fixes source rows, order of the conditions and all randomness of the training steps.
        cond: conditions to be met in reshuffled order, a pytree of ``[num, ...]``; None for none.

    Raises:
        ValueError: for a batch size below one, a negative seed, conditions that are empty, of different length or not
            finite.
    """
    _check_numbers(batch_size, seed)
    lengths = {len(leaf) for leaf in jax.tree.leaves(cond) if np.ndim(leaf)}
    num_conds = min(lengths, default=1)
    if num_conds == 0:
        raise ValueError("cond has no rows: give conditions [num, ...] with num >= 1, or None for none")
    _check_cond("cond", cond, num_conds)
    key = jax.random.key(seed)

    @jax.jit
    def draw(key: Key[Array, ""], step: Array, row_cond: Any) -> Batch:
        keys = jax.vmap(jax.random.split)(keys_by_row(jax.random.fold_in(key, step), batch_size))
        x0, source_cond = source(keys[:, 0])
        return Batch(x0, None, keys[:, 1], row_cond, source_cond)

    draw_many = jax.jit(jax.vmap(draw, in_axes=(None, 0, 0)))

    def conds_at(step: int) -> Any:
        index = row_order(num_conds, batch_size, seed, step)
        return jax.tree.map(lambda leaf: leaf[index], cond)

    def many(first_step: int, count: int) -> Batch:
        steps = range(first_step, first_step + count)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(conds_at, steps))
        return draw_many(key, np.asarray(steps, np.uint32), stacked)

    def no_pairing(step: int) -> Pairing:
        raise ValueError("batches of source rows alone have no pairing")

    return Batches(lambda step: draw(key, np.uint32(step), conds_at(step)), many, no_pairing)


def _from_noise(
    event_shape: tuple[int, ...], dtype: Any, coupling: Coupling | None, batch_size: int
) -> _Programs:
    """Programs of a stream from N(0, I), shared by all streams that differ in data and seed alone.

    Those of other sources are not shared: to remember the program is to keep the source, and the dataset it may hold.
    """
    try:
        hash(coupling)
    except TypeError:
        return _compiled(standard_normal(event_shape, dtype), coupling, batch_size)
    return _shared(event_shape, dtype, coupling, batch_size)


@functools.lru_cache(maxsize=8)
def _shared(
    event_shape: tuple[int, ...], dtype: Any, coupling: Coupling | None, batch_size: int
) -> _Programs:
    return _compiled(standard_normal(event_shape, dtype), coupling, batch_size)


def _compiled(source: Source, coupling: Coupling | None, batch_size: int) -> _Programs:
    def pair(
        key: Key[Array, ""], dropout: Any, step: Array, rows: Array, row_cond: Any
    ) -> tuple[Pairing, Batch]:
        key_step = jax.random.fold_in(key, step)
        keys_of_rows = keys_by_row(key_step, batch_size)
        keys = jax.vmap(jax.random.split)(keys_of_rows)
        x0, source_cond = source(keys[:, 0])
        if coupling is None:
            pairing = permutation_pairing(*flat_ends(x0, rows), jnp.arange(batch_size, dtype=jnp.int32))
        else:
            # A coupling has one key a batch, apart from those of the rows, whose numbers are smaller.
            key_coupling = jax.random.fold_in(key_step, 2**32 - 1)
            pairing = coupling(key_coupling, x0, rows, row_cond, source_cond)
            x0, rows, row_cond, source_cond = apply(pairing, x0, rows, row_cond, source_cond)
        if dropout is not None:
            row_cond = _dropped(keys_of_rows, dropout, row_cond)
        return pairing, Batch(x0, rows, keys[:, 1], row_cond, source_cond, pairing.weight)

    def pair_many(key: Key[Array, ""], dropout: Any, *steps: Any) -> Batch:
        if coupling is None:
            return jax.vmap(lambda *step: pair(key, dropout, *step)[1])(*steps)
        # One after another: side by side, all of them would iterate as long as the slowest coupling.
        return jax.lax.map(lambda step: pair(key, dropout, *step)[1], steps)

    return jax.jit(pair), jax.jit(pair_many)


def _dropped(keys_of_rows: Key[Array, "rows"], dropout: tuple[Array, Any], cond: Any) -> Any:
    """Conditions, some of them replaced by the null condition."""
    probability, null_row = dropout
    # fold_in(key, i) is the i-th key of a split, and a row's key is split in two: 0 and 1 are taken.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys_of_rows)
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)

    def replace(null: Array, rows: Array) -> Array:
        return jnp.where(drop.reshape(drop.shape + (1,) * null.ndim), null, rows)

    return jax.tree.map(replace, null_row, cond)


def interleaved(new: Batches, replay: Batches, *, every: int) -> Batches:
    """Batches of two streams: the rows 0, ``every``, 2 ``every``, ... come from ``replay``, the others from ``new``.

    For methods that rehearse samples of the base model while they learn new data
    (`gft_jax.objectives.with_replay`). With a batch of n rows, ``new`` must give ``n (every - 1) / every`` rows and
    ``replay`` ``n / every``. The streams should have different seeds, or their noise is the same. Both must have the
    same fields: conditions of the same structure, row weights in both or in neither.

    The ``pairing`` of the result is that of ``new`` alone: it counts the new rows, not those of the batch.

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


@functools.lru_cache(maxsize=8)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def _check_rows(name: str, rows: Array | np.ndarray) -> None:
    if np.ndim(rows) < 1 or len(rows) == 0:
        raise ValueError(
            f"{name} is empty (shape {np.shape(rows)}): give an array [num, *event] with num >= 1"
        )
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(
            f"{name} must hold floating-point values, got dtype {rows.dtype}; scale images to [-1, 1]"
        )
    _check_finite(name, rows)


def _check_numbers(batch_size: Any, seed: Any) -> None:
    for name, value, smallest in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if not isinstance(value, numbers.Integral) or value < smallest:
            raise ValueError(f"{name} must be an integer >= {smallest}, got {value!r}")


def _check_cond(name: str, cond: Any, num_rows: int) -> None:
    check_rows(name, cond, num_rows)
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            _check_finite(f"{name}{jax.tree_util.keystr(path)}", leaf)


def _check_finite(name: str, rows: Array | np.ndarray) -> None:
    finite = np.isfinite(np.asarray(rows)).reshape(len(rows), -1)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
        raise ValueError(
            f"{name} holds {finite.size - finite.sum()} values that are not finite, in {len(bad)} of {len(rows)} "
            f"rows (the first: {bad[:5].tolist()}): remove or repair these rows"
        )


def _check_labels(cond: Any, num_classes: int) -> None:
    labels = None if cond is None else np.asarray(cond)
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        found = "no cond" if labels is None else f"shape {labels.shape}, dtype {labels.dtype}"
        raise ValueError(f"num_classes={num_classes} needs cond to be integer labels [num], got {found}")
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(labels)} labels are out of range: rows {bad[:5].tolist()} hold "
            f"{labels[bad[:5]].tolist()}, allowed are 0 to {num_classes - 1}"
        )


def _checked_dropout(
    probability: float, null_cond: Any, cond: Any, num_classes: int | None
) -> tuple[np.ndarray, Any] | None:
    """``(probability, null row)``, or None where nothing is dropped."""
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
    if num_classes is not None and 0 <= null_row < num_classes:
        raise ValueError(
            f"null_cond is {null_cond}, one of the {num_classes} classes: dropped rows would count as its own. Give a "
            f"label that is none, such as {num_classes}"
        )
    return np.asarray(probability, np.float32), null_row


def _check_source(source: Source, event_shape: tuple[int, ...]) -> None:
    x0, _ = jax.eval_shape(source, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)))
    if tuple(x0.shape[1:]) != event_shape:
        raise ValueError(
            f"source and data must have events of one shape: x0 rows have {tuple(x0.shape[1:])}, "
            f"x1 rows have {event_shape}"
        )
