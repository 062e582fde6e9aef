"""The shares of a batch are the whole batch: each row once, in order, with its own noise, whoever reads it."""

import functools

import jax
import numpy as np
import pytest

from gft_jax import couplings, pairing
from gft_jax.couplings import semidiscrete

RNG = np.random.default_rng(0)
X1 = RNG.normal(size=(20, 2)).astype(np.float32)
LABELS = np.arange(20) % 3
COUNT, BATCH_SIZE = 2, 8
COMMON = {"batch_size": BATCH_SIZE, "seed": 5}


def joined(make, step=3):
    """The batches of all shares, one after another."""
    shares = [make(share=pairing.Share(k, COUNT)).batch(step) for k in range(COUNT)]
    return jax.tree.map(lambda *leaves: np.concatenate([as_numbers(leaf) for leaf in leaves]), *shares)


def as_numbers(leaf):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_equal(batch, whole):
    for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, as_numbers(theirs))


def made(name, **share):
    """A stream of each kind, whole or a share of it."""
    labels = COMMON | {"cond": LABELS, "num_classes": 3, "cond_dropout": 0.5, "null_cond": 3} | share
    if name == "drawn":
        return pairing.batches(X1, **labels)
    if name == "sources":
        return pairing.source_batches(pairing.standard_normal((2,)), cond=LABELS, **COMMON, **share)
    if name == "replayed":
        new = pairing.batches(X1, batch_size=6, seed=1, **share)
        return pairing.interleaved(new, pairing.batches(-X1, batch_size=2, seed=2, **share), every=4)
    mark = semidiscrete.marks(jax.numpy.asarray(X1))
    epsilon, cost, error = map(jax.numpy.float32, (1.0, 1.0, 0.0))
    potentials = couplings.SemidiscretePotentials(
        jax.numpy.zeros(20), mark, epsilon, cost, error, jax.numpy.array(True)
    )
    return pairing.chosen_batches(X1, potentials, **labels)


@pytest.mark.parametrize(
    "name",
    ["drawn", "sources", *(pytest.param(name, marks=pytest.mark.slow) for name in ("replayed", "chosen"))],
)
def test_the_shares_together_are_the_whole_batch(name):
    assert_equal(joined(functools.partial(made, name)), made(name).batch(3))


def test_each_share_is_coupled_within_itself_as_by_per_shard():
    """By a coupling that depends on its key; tests/test_processes.py has an exact one."""

    def make(coupling, **share):
        return pairing.batches(X1, **COMMON, coupling=coupling, **share)

    local = couplings.independent()
    ours = joined(functools.partial(make, local))
    assert_equal(ours, make(couplings.per_shard(local, COUNT)).batch(3))
    assert not np.array_equal(ours.x0, make(local).batch(3).x0)  # power: one plan is another


def test_many_steps_and_pairings_of_several_steps_read_the_same_rows():
    options = COMMON | {"coupling": couplings.exact(), "pair_size": 2 * BATCH_SIZE}
    own = slice(4, 8)
    stream, whole = (
        pairing.batches(X1, **options, share=share) for share in (pairing.Share(1, COUNT), pairing.Share())
    )
    batches = stream.many(1, 3)
    for step, (x1, key) in enumerate(zip(batches.x1, batches.key, strict=True), start=1):
        np.testing.assert_array_equal(x1, whole.batch(step).x1[own])
        np.testing.assert_array_equal(as_numbers(key), as_numbers(whole.batch(step).key[own]))
        np.testing.assert_array_equal(stream.batch(step).x0, batches.x0[step - 1])


def test_a_share_of_a_whole_stream_keeps_its_plan():
    whole = pairing.batches(X1, **COMMON, coupling=couplings.exact())
    assert_equal(joined(lambda share: pairing.share_of(whole, share)), whole.batch(3))
    np.testing.assert_array_equal(
        pairing.share_of(whole, pairing.Share(1, COUNT)).many(2, 2).x0, whole.many(2, 2).x0[:, 4:8]
    )


def test_only_the_own_rows_are_read():
    class Watched(np.ndarray):
        def __getitem__(self, index):
            read.append(np.size(index))
            return np.asarray(self)[index]

    read = []
    stream = pairing.batches(X1.view(Watched), batch_size=BATCH_SIZE, seed=0, share=pairing.Share(0, COUNT))
    read.clear()
    stream.batch(0)
    assert read == [BATCH_SIZE // COUNT]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ((2, 2), "parts of a share count from 0 to 1, got 2"),
        ((0, 5), "a batch of 8 rows does not divide into 5 shares: use a multiple of 5"),
        ((-1, 2), "part of a share must be an integer >= 0, got -1"),
        ((0, 0), "num_parts of a share must be an integer >= 1, got 0"),
    ],
)
def test_shares_that_there_are_not_are_refused(share, message):
    with pytest.raises(ValueError, match=message):
        pairing.batches(X1, batch_size=BATCH_SIZE, seed=0, share=pairing.Share(*share))
