"""Scores of flows of images, on a drift that is the same everywhere: all of them are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from experiments.data.shifted import Labels, ShiftedData
from experiments.evaluator import NOISE_SEED
from experiments.images.evaluator import Sampler, by_parts, evaluator, floor, judged
from experiments.methods import PATHS

NUM, EVENT = 5, (2, 2, 1)


def drift(params, t, x, cond=None, /):
    """The parameter, and for a label (the null class is 0) that much more."""
    label = jnp.zeros(len(x)) if cond is None else cond
    return jnp.broadcast_to((params + label)[:, None, None, None], x.shape)


def scores_of(params, base, sampler, labels=None):
    noise = np.asarray(jax.random.normal(jax.random.key(NOISE_SEED), (NUM, *EVENT)))
    named = None if labels is None else Labels(labels, labels, labels)
    data = ShiftedData(None, noise, noise, noise, named)
    keys = jax.random.split(jax.random.key(0), NUM)
    pairs = gft.Batch(jnp.zeros((NUM, *EVENT)), jnp.full((NUM, *EVENT), 3.0), keys)
    evaluate = evaluator(drift, jnp.float32(base), data, PATHS["linear"](), sampler, pairs, judged(data))
    return evaluate(jnp.float32(params)), noise


@pytest.mark.parametrize("rows_at_once", [2, 8])
def test_scores_of_a_drift_that_is_the_same_everywhere(rows_at_once):
    (scores, samples), noise = scores_of(2.0, 1.0, Sampler(3, rows_at_once=rows_at_once))
    np.testing.assert_allclose(samples, noise + 2.0, rtol=1e-6)
    side = np.sqrt(np.prod(EVENT))
    assert scores["path_length"] == pytest.approx(2.0 * side, rel=1e-5)
    assert scores["w2"] == pytest.approx(2.0 * side, rel=1e-5)
    assert scores["one_step_w2"] == pytest.approx(2.0 * side, rel=1e-5)
    assert scores["retention"] == pytest.approx(1.0 * side, rel=1e-5)
    assert scores["num_evaluations"] == 3
    # The velocity of the pairs is 3: of the way of 2 from the base's drift, half has been gone.
    assert scores["reached_weight"] == pytest.approx(0.5, rel=1e-5)


def test_guidance_goes_beyond_the_class():
    labels = np.array([0, 1, 2, 1, 0], np.int32)
    plain, guided = (scores_of(1.0, 1.0, Sampler(2, guidance=scale), labels)[0][1] for scale in (1.0, 3.0))
    np.testing.assert_allclose(guided - plain, 2.0 * labels[:, None, None, None] * np.ones(EVENT), atol=1e-5)


def test_an_adaptive_sampler_reaches_the_same_samples_without_a_path_length():
    (scores, samples), noise = scores_of(2.0, 1.0, Sampler(3, tolerance=1e-3))
    np.testing.assert_allclose(samples, noise + 2.0, rtol=1e-5)
    assert "path_length" not in scores


def test_samples_are_recognised_by_the_data_of_fine_tuning():
    """Data of a class lie around its number: samples that go there are of it; ten too far they are of the next."""
    noise = np.asarray(jax.random.normal(jax.random.key(NOISE_SEED), (NUM, *EVENT)))
    told, known = np.array([0, 10, 20, 10, 20], np.int32), np.repeat(np.int32([0, 10, 20]), 5)
    target = np.random.default_rng(0).normal(size=(15, *EVENT)).astype(np.float32)
    target += known[:, None, None, None]
    data = ShiftedData(None, target, noise, noise, Labels(known, told, told))
    keys = jax.random.split(jax.random.key(0), NUM)
    pairs = gft.Batch(jnp.zeros((NUM, *EVENT)), jnp.full((NUM, *EVENT), 3.0), keys)
    judge = judged(data)
    evaluate = evaluator(drift, jnp.float32(0), data, PATHS["linear"](), Sampler(1), pairs, judge)
    assert evaluate(jnp.float32(0))[0]["label_accuracy"] == 1.0
    assert evaluate(jnp.float32(10))[0]["label_accuracy"] == pytest.approx(2 / 5)
    # Held-out rows lie around zero, whatever they are told.
    assert floor(data, judge)["label_accuracy"] == pytest.approx(1 / 5)
    assert "label_accuracy" not in floor(data, judged(data._replace(labels=None)))
    few = data._replace(target=target[1:], labels=Labels(known[1:], told, told))
    assert judged(few).label_accuracy is None
    assert "label_accuracy" not in scores_of(2.0, 1.0, Sampler(1))[0][0]


@pytest.mark.parametrize("tolerance", [None, 1e-2])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_calls_of_the_network_are_counted(tolerance, guidance):
    counted = []

    def counting(params, t, x, cond=None, /):
        jax.debug.callback(lambda: counted.append(1))
        return params * jnp.sin(9 * t)[:, None] * x

    sampler = Sampler(3, tolerance=tolerance, guidance=guidance)
    sampled = sampler.sample(
        sampler.drift(counting, True), jnp.float32(4.0), jnp.ones((2, 3)), jnp.zeros(2, int)
    )
    jax.effects_barrier()
    assert sampled.num_evaluations.tolist() == [len(counted)] * 2
    assert sampler.num_evaluations == (3 * guidance if tolerance is None else None)
    assert len(counted) > 3 * guidance or tolerance is None


def test_parts_are_of_one_size_and_give_all_rows_once():
    seen = []

    def double(x, y):
        seen.append(len(x))
        return 2 * x, y

    x = np.arange(7)
    doubled, none = by_parts(double, 3, x, None)
    np.testing.assert_array_equal(doubled, 2 * x)
    assert none is None
    assert seen == [3, 3, 3]
