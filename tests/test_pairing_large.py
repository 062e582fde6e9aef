"""Pairings larger than a batch, and batches computed ahead: only who is paired with whom may change, or nothing."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from gft_jax.pairing import ahead, batches, rows_of, source_batches, standard_normal

X1 = np.random.default_rng(0).normal(1.0, 2.0, (40, 2)).astype(np.float32)


def arrays_of(batch):
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(batch)
    ]


def assert_same(one, other):
    for ours, theirs in zip(arrays_of(one), arrays_of(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def streams():
    """Batches of 6 rows: as drawn, coupled step by step, and three steps at once."""
    options = {"batch_size": 6, "seed": 3, "cond": np.arange(40)}
    exact = gft.couplings.exact()
    return (
        batches(X1, **options),
        batches(X1, **options, coupling=exact),
        batches(X1, **options, coupling=exact, pair_size=18),
    )


def test_a_large_pairing_serves_the_steps_in_their_order_and_moves_noise_alone(streams):
    drawn, small, large = streams
    steps = [large.batch(step) for step in range(3, 6)]
    for step, batch in zip(range(3, 6), steps, strict=True):
        np.testing.assert_array_equal(batch.x1, drawn.batch(step).x1)
        np.testing.assert_array_equal(batch.cond, drawn.batch(step).cond)
        np.testing.assert_array_equal(
            jax.random.key_data(batch.key), jax.random.key_data(drawn.batch(step).key)
        )
    x0, x1 = (np.concatenate([getattr(batch, name) for batch in steps]) for name in ("x0", "x1"))
    noise = np.concatenate([drawn.batch(step).x0 for step in range(3, 6)])
    np.testing.assert_array_equal(np.sort(x0, axis=0), np.sort(noise, axis=0))
    expected = gft.couplings.exact()(jax.random.key(0), noise, x1)
    np.testing.assert_array_equal(x0, noise[expected.source_index])
    np.testing.assert_allclose(large.pairing(4).cost, expected.cost, rtol=1e-6)
    assert large.pairing(3).cost < np.mean([small.pairing(step).cost for step in range(3, 6)])


def test_chunks_may_begin_and_end_within_a_large_pairing(streams):
    large = streams[2]
    for first, count in ((0, 3), (2, 1), (1, 7), (4, 2)):
        many = large.many(first, count)
        for i in range(count):
            assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], many), large.batch(first + i))


def test_a_random_coupling_has_another_key_for_each_pairing():
    stream = batches(
        X1, batch_size=4, seed=0, coupling=gft.couplings.independent(), pair_size=8, source=rows_of(X1[:8])
    )
    assert (stream.pairing(0).source_index != stream.pairing(2).source_index).any()
    np.testing.assert_array_equal(stream.pairing(2).source_index, stream.pairing(3).source_index)


def test_diagnostics_are_those_of_the_pairing_before_rows_move(streams):
    drawn, small, large = streams
    for stream, rows in ((small, [drawn.batch(4)]), (large, [drawn.batch(step) for step in (3, 4, 5)])):
        x0, x1 = (np.concatenate([getattr(batch, name) for batch in rows]) for name in ("x0", "x1"))
        expected = gft.couplings.diagnose(stream.pairing(4), x0, x1)
        found = stream.diagnose(4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
        assert abs(float(found.excess)) < 1e-5
    assert float(drawn.diagnose(4).excess) > 0.1
    with pytest.raises(ValueError, match="have no pairing"):
        source_batches(standard_normal(()), batch_size=2, seed=0).diagnose(0)


def test_arrays_of_a_coupling_are_arguments_of_its_program():
    """Not constants: streams whose couplings differ in their arrays alone share one program."""

    def shifted(shift, key, x0, x1, cond=None, source_cond=None):
        return gft.couplings.exact()(key, x0 + shift, x1)

    traced = []

    def counted(*args):
        traced.append(True)
        return shifted(*args)

    found = []
    for shift in (jnp.zeros(2), jnp.full(2, 100.0) * jnp.array([1.0, -1.0])):
        stream = batches(X1, batch_size=8, seed=0, coupling=jax.tree_util.Partial(counted, shift))
        found.append(stream.pairing(0).source_index)
    # A shift of all of x0 changes no optimal assignment.
    np.testing.assert_array_equal(*found)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair_size": 20}, "multiple of batch_size.*pair_size=20 with batch_size=6"),
        ({"pair_size": 3}, "pair_size must be an integer >= 6, got 3"),
        ({"pair_size": 12, "coupling": None}, "needs a coupling"),
    ],
)
def test_pair_sizes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        batches(X1, **({"batch_size": 6, "seed": 0, "coupling": gft.couplings.exact()} | change))


def test_batches_computed_ahead_are_those_of_the_stream_in_any_order(streams):
    large = streams[2]
    with ahead(large, depth=2, num_steps=9) as prefetched:
        for step in (0, 1, 2, 7, 8, 3):
            assert_same(prefetched.batch(step), large.batch(step))
        for first, count in ((0, 4), (4, 4), (8, 1), (2, 5)):
            assert_same(prefetched.many(first, count), large.many(first, count))
        assert_same(prefetched.pairing(4), large.pairing(4))
    # A run that resumes.
    with ahead(large) as prefetched:
        assert_same(prefetched.batch(5), large.batch(5))


class Recorded:
    """A stream of numbers that notes who computed what, and waits at a gate."""

    def __init__(self):
        self.done, self.gate = [], threading.Event()
        self.gate.set()

    def batch(self, step):
        self.gate.wait(10)
        if step == 13:
            raise ValueError("step 13 cannot be")
        self.done.append((step, threading.current_thread()))
        return gft.Batch(np.full(1, step), None, None)

    def stream(self):
        return gft.pairing.Batches(
            self.batch,
            lambda first, count: jax.tree.map(np.stack, self.batch(first)._replace(key=np.full(1, count))),
        )

    def steps(self):
        return [step for step, _ in self.done]


def wait_for(holds):
    deadline = threading.Event()
    for _ in range(500):
        if holds():
            return
        deadline.wait(0.01)
    raise AssertionError("waited in vain")


def test_the_steps_that_follow_are_computed_while_the_caller_does_something_else():
    recorded = Recorded()
    with ahead(recorded.stream(), depth=2, num_steps=5) as prefetched:
        prefetched.batch(0)
        wait_for(lambda: recorded.steps() == [0, 1, 2])  # nobody asked for 1 and 2
        prefetched.batch(1)
        wait_for(lambda: recorded.steps() == [0, 1, 2, 3])  # each once
        prefetched.batch(2)
        prefetched.batch(3)
        wait_for(lambda: recorded.steps() == [0, 1, 2, 3, 4])
        prefetched.batch(4)
    assert recorded.steps() == [0, 1, 2, 3, 4]  # and none beyond the end
    assert threading.current_thread() not in {thread for _, thread in recorded.done}


def test_what_is_no_longer_wanted_is_not_computed():
    recorded = Recorded()
    with ahead(recorded.stream(), depth=3) as prefetched:
        recorded.gate.clear()
        first = threading.Thread(target=prefetched.batch, args=(0,))
        first.start()
        later = threading.Thread(target=prefetched.batch, args=(50,))
        wait_for(lambda: not recorded.done)
        later.start()
        wait_for(later.is_alive)
        threading.Timer(0.2, recorded.gate.set).start()
        first.join()
        later.join()
        wait_for(lambda: 53 in recorded.steps())
    assert not {2, 3} & set(recorded.steps())


def test_a_pairing_is_made_once_for_all_of_its_steps():
    made = []

    def counted(key, x0, x1, cond=None, source_cond=None):
        jax.debug.callback(lambda key: made.append(tuple(np.asarray(key))), jax.random.key_data(key))
        return gft.couplings.independent()(key, x0, x1)

    stream = batches(X1, batch_size=4, seed=0, coupling=counted, pair_size=12)
    for step in range(6):
        jax.block_until_ready(stream.batch(step))
    jax.block_until_ready(stream.many(4, 2))
    jax.effects_barrier()
    assert len(made) == len(set(made)) == 2
    # The key of a pairing is none of those of its rows.
    rows = [gft.pairing.row_keys(0, step, 4) for step in range(6)]
    assert not set(made) & {tuple(key) for keys in rows for key in np.asarray(jax.random.key_data(keys))}


def test_steps_may_be_arrays_and_what_is_no_step_is_refused(streams):
    for stream in (streams[0], streams[2], source_batches(standard_normal(()), batch_size=2, seed=0)):
        assert_same(stream.batch(jnp.int32(3)), stream.batch(3))
        assert_same(stream.many(jnp.int32(3), np.int64(2)), stream.many(3, 2))
        for step in (-1, 2**32):
            with pytest.raises(ValueError, match=rf"a step is an integer from 0 to .* got {step}"):
                stream.batch(step)
        with pytest.raises(ValueError, match=r"a number of steps is an integer from 1 to .* got 0"):
            stream.many(0, 0)
    with ahead(streams[0]) as prefetched:
        assert_same(prefetched.batch(jnp.int32(3)), streams[0].batch(3))


def test_chunks_end_with_the_run():
    recorded = Recorded()
    with ahead(recorded.stream(), depth=3, num_steps=10) as prefetched:
        assert prefetched.many(0, 4).key == 4
        wait_for(lambda: recorded.steps() == [0, 4, 8])
        assert prefetched.many(4, 4).key == 4
        assert prefetched.many(8, 2).key == 2
    assert recorded.steps() == [0, 4, 8]


def test_an_error_is_raised_when_its_batch_is_asked_for_and_the_rest_goes_on():
    recorded = Recorded()
    with ahead(recorded.stream(), depth=2) as prefetched:
        assert prefetched.batch(12).x0 == 12
        with pytest.raises(ValueError, match="step 13"):
            prefetched.batch(13)
        assert prefetched.batch(14).x0 == 14


def test_leaving_cancels_what_has_not_begun():
    recorded = Recorded()
    with ahead(recorded.stream(), depth=4) as prefetched:
        prefetched.batch(0)
        wait_for(lambda: len(recorded.done) >= 1)
        recorded.gate.clear()
        before = len(recorded.done)
        threading.Timer(0.2, recorded.gate.set).start()
    assert len(recorded.done) <= before + 2
    for step in (0, 1, 20):  # asked for, computed ahead, never thought of
        with pytest.raises(RuntimeError, match=r"block of .* is left"):
            prefetched.batch(step)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"depth": 0}, "depth must be an integer >= 1, got 0"), ({"num_steps": -1}, "-1")],
)
def test_impossible_depths_are_refused(options, message):
    with pytest.raises(ValueError, match=message), ahead(Recorded().stream(), **options):
        pass


def test_batches_may_be_computed_on_another_device(streams):
    device = jax.devices("cpu")[0]
    with ahead(streams[2], device=device) as prefetched:
        batch = prefetched.batch(1)
    assert_same(batch, streams[2].batch(1))
    assert batch.x0.devices() == jnp.zeros(()).devices()
