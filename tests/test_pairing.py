"""From dataset rows to batches: order, sources, conditions, and what is refused."""

import dataclasses
import gc
import logging
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from gft_jax.pairing import batches, row_keys, row_order, rows_of, source_batches, standard_normal


def test_the_order_is_one_permutation_after_another():
    """Cut into batches anywhere, an epoch holds every row once, and epochs and seeds differ."""
    stream = np.concatenate([row_order(10, 4, 7, step) for step in range(5)])
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[:4], row_order(10, 4, 8, 0))
    np.testing.assert_array_equal(row_order(10, 4, 7, 3), stream[12:16])


def test_fewer_rows_than_a_batch_repeat_evenly_in_reshuffled_order():
    index = row_order(3, 8, 0, 0)
    counts = np.bincount(index, minlength=3)
    assert counts.max() - counts.min() <= 1
    orders = {tuple(row_order(3, 3, 0, step)) for step in range(20)}
    assert len(orders) > 3


def test_a_batch_is_a_pure_function_of_seed_and_step():
    x1 = np.random.default_rng(0).normal(size=(20, 2, 3)).astype(np.float32)
    cond = np.arange(20)
    one = batches(x1, batch_size=6, seed=1, cond=cond, num_classes=20)
    two = batches(x1, batch_size=6, seed=1, cond=cond, num_classes=20)
    batch = one.batch(5)
    for ours, theirs in zip(batch[:2], two.batch(5)[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(batch.cond, row_order(20, 6, 1, 5))
    np.testing.assert_array_equal(batch.x1, x1[np.asarray(batch.cond)])
    assert not np.array_equal(batch.x0, one.batch(6).x0)
    assert not np.array_equal(batch.x0, batches(x1, batch_size=6, seed=2).batch(5).x0)
    many = one.many(4, 3)
    np.testing.assert_array_equal(many.x0[1], batch.x0)
    np.testing.assert_array_equal(jax.random.key_data(many.key[1]), jax.random.key_data(batch.key))


def test_noise_does_not_depend_on_how_many_rows_there_are():
    """A row's key comes from its global number, so a larger batch begins with the keys of a smaller one."""
    few, many = row_keys(3, 9, 4), row_keys(3, 9, 8)
    np.testing.assert_array_equal(jax.random.key_data(few), jax.random.key_data(many[:4]))
    assert len(np.unique(jax.random.key_data(many), axis=0)) == 8


def test_source_noise_is_standard_normal_and_the_source_can_be_data():
    x1 = np.zeros((4, 3), np.float32)
    noise = np.asarray(batches(x1, batch_size=4000, seed=0).batch(0).x0)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)
    x0 = np.arange(15, dtype=np.float32).reshape(5, 3)
    batch = batches(x1, batch_size=50, seed=0, source=rows_of(x0, np.arange(5))).batch(0)
    np.testing.assert_array_equal(batch.x0, x0[np.asarray(batch.source_cond)])
    assert set(np.asarray(batch.source_cond)) == set(range(5))


@dataclasses.dataclass
class Unhashable:
    """Not hashable: as a source, the data themselves; as a coupling, the reversed order."""

    rows: np.ndarray

    def __call__(self, *args):
        if len(args) == 1:
            return jnp.asarray(self.rows)[: len(args[0])], None
        pairing = gft.couplings.independent()(*args)
        return pairing._replace(source_index=jnp.arange(len(args[1]))[::-1])


def test_sources_and_couplings_need_not_be_hashable():
    x1 = np.arange(6, dtype=np.float32).reshape(3, 2)
    batch = batches(x1, batch_size=3, seed=0, source=Unhashable(-x1)).batch(0)
    np.testing.assert_array_equal(batch.x0, -x1)
    straight, reversed_ = (
        batches(x1, batch_size=3, seed=0, coupling=c).batch(0) for c in (None, Unhashable(x1))
    )
    np.testing.assert_array_equal(reversed_.x0, straight.x0[::-1])
    noise = batches(x1, batch_size=3, seed=0, source=standard_normal([2])).batch(0)
    np.testing.assert_array_equal(noise.x0, straight.x0)


@pytest.mark.parametrize("as_closure", [True, False])
def test_a_stream_that_is_gone_leaves_nothing_of_its_source_behind(as_closure):
    rows = jnp.ones((5, 3))
    source = (lambda keys: (rows[: len(keys)], None)) if as_closure else rows_of(rows)
    stream, alive = (
        batches(np.zeros((4, 3), np.float32), batch_size=2, seed=0, source=source),
        weakref.ref(rows),
    )
    assert stream.batch(0).x0.shape == (2, 3)
    del source, rows
    assert alive() is not None
    del stream
    gc.collect()
    assert alive() is None


def test_streams_that_differ_in_data_and_seed_share_their_programs(caplog):
    coupling = gft.couplings.independent()
    counts = []
    for seed in (0, 1):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level(logging.WARNING):
            batches(np.full((4, 3), seed, np.float32), batch_size=2, seed=seed, coupling=coupling).batch(seed)
        counts.append(sum("Compiling" in record.getMessage() for record in caplog.records))
    assert counts[0] > 0
    assert counts[1] == 0


def test_a_coupling_moves_x0_and_its_condition_and_leaves_x1_in_place():
    x1 = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    x0 = x1 + 100.0
    stream = batches(
        x1,
        batch_size=16,
        seed=0,
        coupling=gft.couplings.exact(),
        source=rows_of(x0, np.arange(16)),
        cond=np.arange(16),
    )
    batch = stream.batch(0)
    np.testing.assert_array_equal(batch.cond, row_order(16, 16, 0, 0))
    np.testing.assert_array_equal(batch.x0, x0[np.asarray(batch.source_cond)])
    independent = batches(x1, batch_size=16, seed=0, source=rows_of(x0), cond=np.arange(16)).batch(0)

    def cost(batch):
        return float(jnp.sum((batch.x0 - batch.x1) ** 2))

    assert cost(batch) < cost(independent)


def test_row_weights_and_labels_go_through_the_stream():
    """x1 keeps its order, its labels and the weights of the coupling; the outlier is left in, with no weight."""
    x1 = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    x1[3] = 30.0
    label = np.arange(16) % 2
    coupling = gft.couplings.respecting_labels(gft.couplings.unbalanced())
    stream = batches(x1, batch_size=16, seed=0, coupling=coupling, cond=label, num_classes=2)
    order, batch, pairing = row_order(16, 16, 0, 2), stream.batch(2), stream.pairing(2)
    np.testing.assert_array_equal(batch.x1, x1[order])
    np.testing.assert_array_equal(batch.cond, label[order])
    np.testing.assert_array_equal(batch.weight, pairing.weight)
    assert np.argmin(batch.weight) == np.flatnonzero(order == 3)[0]
    assert np.min(batch.weight) < 0.05


def test_dropped_conditions_are_null_at_the_given_rate_and_all_else_stays():
    x1 = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    cond = {"label": np.arange(50), "style": np.tile(np.arange(50.0, dtype=np.float32)[:, None], (1, 3))}
    null = {"label": -1, "style": np.full(3, 0.5)}
    options = {"batch_size": 4000, "seed": 1, "cond": cond}
    plain = batches(x1, **options).batch(3)
    stream = batches(x1, **options, cond_dropout=0.1, null_cond=null)
    batch = stream.batch(3)
    dropped = np.asarray(batch.cond["label"]) == -1
    kept = ~dropped
    np.testing.assert_array_equal(batch.cond["style"][dropped], 0.5)  # whole rows
    np.testing.assert_array_equal(batch.cond["label"][kept], plain.cond["label"][kept])
    np.testing.assert_array_equal(batch.cond["style"][kept], plain.cond["style"][kept])
    assert batch.cond["label"].dtype == plain.cond["label"].dtype
    np.testing.assert_array_equal(batch.x0, plain.x0)
    np.testing.assert_array_equal(batch.x1, plain.x1)
    np.testing.assert_array_equal(jax.random.key_data(batch.key), jax.random.key_data(plain.key))

    def z_score(probability):
        return abs(dropped.mean() - probability) / np.sqrt(probability * (1 - probability) / 4000)

    assert z_score(0.1) < 4
    assert z_score(0.15) > 5  # power
    # Independent of data and noise, new at every step, and of the row alone.
    assert abs(np.corrcoef(dropped, np.asarray(batch.x0[:, 0]))[0, 1]) < 4 / np.sqrt(4000)
    many = stream.many(2, 2)
    np.testing.assert_array_equal(many.cond["label"][1], batch.cond["label"])
    assert not np.array_equal(np.asarray(many.cond["label"][0]) == -1, dropped)
    few = batches(x1, **(options | {"batch_size": 100}), cond_dropout=0.1, null_cond=null).batch(3)
    np.testing.assert_array_equal(np.asarray(few.cond["label"]) == -1, dropped[:100])


def test_a_coupling_sees_the_conditions_that_are_dropped_afterwards():
    seen = []

    def coupling(key, x0, x1, cond=None, source_cond=None):
        jax.debug.callback(lambda cond: seen.append(np.asarray(cond)), cond)
        return gft.couplings.independent()(key, x0, x1)

    x1 = np.zeros((6, 1), np.float32)
    stream = batches(
        x1, batch_size=6, seed=0, coupling=coupling, cond=np.arange(6), cond_dropout=1.0, null_cond=6
    )
    np.testing.assert_array_equal(stream.batch(0).cond, [6] * 6)
    jax.effects_barrier()
    np.testing.assert_array_equal(np.sort(seen[0]), np.arange(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x1": np.zeros((0, 3), np.float32)}, r"x1 is empty \(shape \(0, 3\)\)"),
        ({"x1": np.zeros((4, 3), np.int32)}, "floating-point.*int32"),
        (
            {"x1": np.array([[0.0], [np.nan], [np.inf], [1.0]], np.float32)},
            r"2 values.*2 of 4 rows.*\[1, 2\]",
        ),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"cond": np.arange(3)}, r"cond.*4 samples.*\(3,\)"),
        ({"cond": np.array([0, 1, 2, 5]), "num_classes": 3}, r"1 of 4 labels.*rows \[3\] hold \[5\].*0 to 2"),
        ({"cond": np.array([0, -1, 2, 1]), "num_classes": 3}, r"rows \[1\] hold \[-1\]"),
        ({"cond": np.zeros((4, 2), np.float32), "num_classes": 3}, "integer labels.*float32"),
        ({"num_classes": 3}, "no cond"),
        ({"cond": np.arange(4), "cond_dropout": 1.1, "null_cond": 4}, r"probability in \[0, 1\], got 1.1"),
        ({"cond": np.arange(4), "cond_dropout": 0.1}, "cond_dropout=0.1 and null_cond=None"),
        ({"cond": np.arange(4), "null_cond": 4}, "cond_dropout=0.0 and null_cond=4"),
        ({"cond_dropout": 0.1, "null_cond": 4}, "needs conditions to drop"),
        ({"cond": np.arange(4), "cond_dropout": 0.1, "null_cond": [4]}, "like one row of cond"),
        ({"cond": np.arange(4), "cond_dropout": 0.1, "null_cond": np.array([4])}, r"\(\), got shape \(1,\)"),
        (
            {"cond": np.arange(4), "num_classes": 4, "cond_dropout": 0.1, "null_cond": 3},
            "null_cond is 3, one of the 4 classes: .* such as 4",
        ),
        ({"source": rows_of(np.zeros((5, 2), np.float32))}, r"\(2,\).*\(3,\)"),
    ],
)
def test_bad_data_is_refused_before_training(change, message):
    arguments = {"x1": np.zeros((4, 3), np.float32), "batch_size": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        batches(arguments.pop("x1"), **arguments)


def test_a_number_is_no_shape(without_hook):
    with pytest.raises(ValueError, match=r"shape of one sample, such as \(2,\), got 2"):
        standard_normal(2)


def test_a_bad_source_is_refused():
    with pytest.raises(ValueError, match="x0 is empty"):
        rows_of(np.zeros((0, 2), np.float32))
    with pytest.raises(ValueError, match=r"source_cond.*5 samples.*\(4,\)"):
        rows_of(np.zeros((5, 2), np.float32), np.arange(4))


def test_source_rows_alone_are_those_of_the_keys_with_conditions_in_reshuffled_order():
    conds = np.arange(5)
    stream = source_batches(standard_normal((2,)), batch_size=4, seed=3, cond=conds)
    batches = [stream.batch(step) for step in range(5)]
    seen = np.concatenate([batch.cond for batch in batches])
    assert all(sorted(seen[start : start + 5]) == list(range(5)) for start in range(0, 20, 5))
    assert len({tuple(seen[start : start + 5]) for start in range(0, 20, 5)}) > 1
    for step, batch in enumerate(batches):
        keys = jax.vmap(jax.random.split)(row_keys(3, step, 4))
        expected = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys[:, 0])
        np.testing.assert_array_equal(batch.x0, expected)
        np.testing.assert_array_equal(jax.random.key_data(batch.key), jax.random.key_data(keys[:, 1]))
        assert batch.x1 is None
    many = stream.many(1, 3)
    np.testing.assert_array_equal(many.x0[2], batches[3].x0)
    np.testing.assert_array_equal(many.cond[2], batches[3].cond)
    assert source_batches(standard_normal(()), batch_size=2, seed=0).many(0, 2).cond is None
    with pytest.raises(ValueError, match="have no pairing"):
        stream.pairing(0)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        source_batches(standard_normal(()), batch_size=0, seed=0)
    with pytest.raises(ValueError, match="cond has no rows"):
        source_batches(standard_normal(()), batch_size=1, seed=0, cond=np.zeros(0))
