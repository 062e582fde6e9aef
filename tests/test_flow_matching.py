"""Flow matching, the weights of its rows and times, and how times are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
from gaussian_toy import PARAMS, PATH, affine, batch_of, flat, gradient, mean_loss, prepare
from scipy.special import logit
from scipy.stats import kstest

import gft_jax as gft


def test_half_precision_data_keep_exact_times():
    """Times, weights and sums are in float32: bfloat16 has 679 times, and adds 257 rows up to 256."""
    batch = batch_of(1024)
    half = batch._replace(x0=batch.x0.astype(jnp.bfloat16), x1=batch.x1.astype(jnp.bfloat16))
    for path in (gft.paths.variance_preserving(), gft.paths.brownian_bridge(0.5)):
        sampler = gft.objectives.time_sampling.uniform(1e-3, 1 - 1e-3)
        objective = gft.objectives.flow_matching(affine, path, time_sampler=sampler)
        rows = prepare(objective, PARAMS, None, half, 0.0)
        assert len(np.unique(rows.t)) > 1000
        assert np.isfinite(rows.velocity).all()
        loss, exact = (mean_loss(objective, PARAMS, None, some)[0] for some in (half, batch))
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, exact, rtol=0.02)


def test_weights_of_rows_and_of_time(x64):
    """A row of weight 2 counts as two rows; k(t) multiplies the squared error."""
    batch = batch_of(6)
    objective = gft.objectives.flow_matching(affine)
    weighted = batch._replace(weight=jnp.asarray([2.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    repeated = jax.jit(lambda batch: jax.tree.map(lambda leaf: leaf[np.array([0, 0, 1, 2, 3, 4])], batch))(
        batch
    )
    ours, _ = gradient(objective, PARAMS, None, weighted, 0.0)
    theirs, _ = gradient(objective, PARAMS, None, repeated, 0.0)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-12)

    rows = jax.device_get(prepare(objective, PARAMS, None, batch))
    by_time = gft.objectives.flow_matching(affine, weighting=lambda t: 3.0 * t)
    error = np.sum((affine(PARAMS, rows.t, rows.x) - rows.velocity) ** 2, -1)
    loss, _ = mean_loss(by_time, PARAMS, None, batch)
    np.testing.assert_allclose(loss, np.mean(3.0 * rows.t * error), rtol=1e-12)


def test_girsanov_weight_in_closed_form(x64):
    def girsanov(diffusion, max_weight=1e9):
        weight = gft.objectives.weighting.girsanov(PATH, diffusion, max_weight=max_weight)
        return lambda t: np.asarray(jax.jit(weight)(jnp.asarray(t)))

    t, g = np.linspace(0.05, 0.9, 12), 0.7
    memoryless, constant = gft.diffusions.memoryless(PATH), gft.diffusions.constant(g)
    np.testing.assert_allclose(girsanov(memoryless)(t), t / (1 - t), rtol=1e-10)
    expected = (1 + g**2 * t / (2 * (1 - t))) ** 2 / (2 * g**2)
    np.testing.assert_allclose(girsanov(constant)(t), expected, rtol=1e-10)
    np.testing.assert_allclose(girsanov(memoryless, 50.0)([0.0, 1.0]), [0.0, 50.0])
    np.testing.assert_allclose(girsanov(constant)([0.0]), 1 / (2 * g**2), rtol=1e-12)


def test_time_samplers_have_their_laws():
    keys = jax.random.split(jax.random.key(0), 4000)

    def sample(sampler):
        draw = jax.jit(
            lambda keys: gft.objectives.time_sampling.draw_times(sampler, keys, jnp.dtype(jnp.float32))
        )
        return np.asarray(draw(keys))

    uniform = sample(gft.objectives.time_sampling.uniform(0.2, 0.7))
    logits = logit(sample(gft.objectives.time_sampling.logit_normal(0.5, 0.8)))
    falling = sample(gft.objectives.time_sampling.beta(1.0, 2.0))
    squeezed = sample(gft.objectives.time_sampling.beta(1.0, 2.0, 0.2, 0.7))
    assert kstest(uniform, "uniform", (0.2, 0.5)).pvalue > 1e-3
    assert kstest(uniform, "uniform", (0.2, 0.55)).pvalue < 1e-6  # power
    assert kstest(logits, "norm", (0.5, 0.8)).pvalue > 1e-3
    assert kstest(logits, "norm", (0.6, 0.8)).pvalue < 1e-6  # power
    assert kstest(falling, lambda t: 2 * t - t**2).pvalue > 1e-3  # the density is 2 (1 - t)
    assert kstest(falling, lambda t: t**2).pvalue < 1e-6  # power
    np.testing.assert_allclose(squeezed, 0.2 + 0.5 * falling, rtol=1e-6)
    assert squeezed.min() >= np.float32(0.2)
    assert squeezed.max() <= np.float32(0.7)


def test_beta_times_without_bounds_are_those_of_jax_bit_for_bit():
    draw, keys = gft.objectives.time_sampling.beta(2.0, 1.0), jax.random.split(jax.random.key(0), 500)
    ours, theirs = jax.jit(
        lambda k: (jax.vmap(draw)(k), jax.vmap(lambda key: jax.random.beta(key, 2.0, 1.0))(k))
    )(keys)
    assert theirs.max() < 1.0
    np.testing.assert_array_equal(ours, theirs)
