"""The controls: penalties towards the base, rehearsal of its samples, and the streams that feed them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import BASE_PARAMS, PARAMS, affine, batch_of, flat, gradient, mean_loss

import gft_jax as gft
from gft_jax.objectives import flow_matching, l2_sp, with_replay
from gft_jax.pairing import batches, interleaved

WITH_STATE = flow_matching(affine)._replace(init=lambda params, base_params: jnp.zeros(()))


def take(batch, index):
    return jax.jit(lambda batch: jax.tree.map(lambda leaf: leaf[index], batch))(batch)


def test_l2_sp_adds_the_gradient_of_the_penalty(x64):
    batch = batch_of(8)
    batch = batch._replace(weight=jnp.linspace(0.5, 2.0, 8))  # the penalty does not depend on them
    without, _ = gradient(flow_matching(affine), PARAMS, BASE_PARAMS, batch, 0.0)
    ours, stats = gradient(l2_sp(flow_matching(affine), 0.7), PARAMS, BASE_PARAMS, batch, 0.0)
    np.testing.assert_allclose(
        flat(ours), flat(without) + 0.7 * 0.3, rtol=1e-12
    )  # PARAMS - BASE_PARAMS is 0.3
    np.testing.assert_allclose(stats["l2_sp"], 0.7 / 2 * 6 * 0.3**2, rtol=1e-12)


def test_replay_is_the_sum_of_two_means_on_rows_of_their_own(x64):
    batch, every, weight = batch_of(12), 3, 0.4
    replayed = np.arange(12) % every == 0
    objective = with_replay(
        flow_matching(affine, weighting=lambda t: t), flow_matching(affine), every=every, weight=weight
    )
    ours, stats = gradient(objective, PARAMS, None, batch, 0.0)
    new, _ = gradient(flow_matching(affine, weighting=lambda t: t), PARAMS, None, take(batch, ~replayed), 0.0)
    old, _ = gradient(flow_matching(affine), PARAMS, None, take(batch, replayed), 0.0)
    np.testing.assert_allclose(flat(ours), flat(new) + weight * flat(old), rtol=1e-12)
    new_loss, _ = mean_loss(
        flow_matching(affine, weighting=lambda t: t), PARAMS, None, take(batch, ~replayed), 0.0
    )
    np.testing.assert_allclose(stats["flow_matching_loss"], new_loss, rtol=1e-12)


def test_interleaved_streams_keep_their_rows_and_their_order():
    new = batches(np.arange(40, dtype=np.float32).reshape(40, 1), batch_size=9, seed=0)
    replay = batches(-np.arange(1, 21, dtype=np.float32).reshape(20, 1), batch_size=3, seed=1)
    both = interleaved(new, replay, every=4)
    batch = both.batch(2)
    is_replay = np.arange(12) % 4 == 0
    for name in ("x0", "x1"):
        rows = np.asarray(getattr(batch, name))
        np.testing.assert_array_equal(rows[~is_replay], getattr(new.batch(2), name))
        np.testing.assert_array_equal(rows[is_replay], getattr(replay.batch(2), name))
    many = both.many(1, 3)
    np.testing.assert_array_equal(many.x1[1], batch.x1)
    np.testing.assert_array_equal(jax.random.key_data(many.key[1]), jax.random.key_data(batch.key))
    assert len(np.unique(jax.random.key_data(batch.key), axis=0)) == 12
    assert len(both.pairing(2).source_index) == 9  # the pairing of the new rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: l2_sp(flow_matching(affine), -1.0), "strength.*-1.0"),
        (lambda: with_replay(flow_matching(affine), flow_matching(affine), every=1, weight=1.0), "every.*1"),
        (lambda: with_replay(flow_matching(affine), flow_matching(affine), every=2, weight=0.0), "weight.*0"),
        (
            lambda: gft.mean_loss(
                with_replay(flow_matching(affine), flow_matching(affine), every=4, weight=1.0),
                PARAMS,
                None,
                batch_of(6),
            ),
            "every=4.*6 rows",
        ),
        (
            lambda: gft.mean_loss(l2_sp(flow_matching(affine), 1.0), PARAMS, None, batch_of(6)),
            "base_params is None",
        ),
        (
            lambda: gft.mean_loss(
                with_replay(flow_matching(affine), flow_matching(affine), every=2, weight=1.0),
                PARAMS,
                None,
                batch_of(6)._replace(weight=jnp.ones(6)),
            ),
            r"row weights of shape \(6,\)",
        ),
        (lambda: with_replay(flow_matching(affine), WITH_STATE, every=2, weight=1.0), "replay has an init"),
        (
            lambda: with_replay(WITH_STATE, flow_matching(affine), every=2, weight=1.0),
            "objective has an init",
        ),
        (lambda: gft.objectives.time_sampling.beta(0.0, 1.0), "a=0.0, b=1.0"),
        (lambda: gft.objectives.time_sampling.beta(1.0, 1.0, 0.5, 0.2), "start=0.5, end=0.2"),
        (
            lambda: interleaved(
                batches(np.ones((4, 1), np.float32), batch_size=4, seed=0),
                batches(np.ones((4, 1), np.float32), batch_size=4, seed=1),
                every=4,
            ).batch(0),
            "4 new and 4 replayed",
        ),
        (
            lambda: interleaved(
                batches(np.ones((4, 1), np.float32), batch_size=3, seed=0, cond=np.arange(4)),
                batches(np.ones((4, 1), np.float32), batch_size=1, seed=1),
                every=4,
            ).batch(0),
            r"the same cond: .*new rows it is PyTreeDef\(\*\).*replayed rows PyTreeDef\(None\)",
        ),
    ],
)
def test_wrong_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
