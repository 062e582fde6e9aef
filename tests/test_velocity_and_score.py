"""Joint regression of velocity and score: its minimiser, and a bridge that is trained and sampled with noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft

MEAN, SPREAD, LEVEL, EPSILON = 1.5, 0.5, 0.8, 0.02
NUM_ROWS = 50_000


def truth(t, correlation):
    """Slope and offset of the marginal velocity and score of the bridge between N(0, 1) and N(MEAN, SPREAD^2)."""
    cross = correlation * SPREAD
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2 + 2 * t * (1 - t) * cross + LEVEL**2 * t * (1 - t)
    rate = -2 * (1 - t) + 2 * t * SPREAD**2 + (2 * cross + LEVEL**2) * (1 - 2 * t)
    slope = rate / (2 * variance)
    return (slope, MEAN - slope * t * MEAN), (-1 / variance, t * MEAN / variance)


def heads(correlation):
    """Velocity and score that are the true ones where all four parameters are zero."""

    def head(which):
        def field(params, t, x, cond=None):
            slope, offset = truth(t, correlation)[which]
            return (slope + params[2 * which]) * x + offset + params[2 * which + 1]

        return field

    return head(0), head(1)


def objective(correlation):
    return gft.objectives.velocity_and_score(
        *heads(correlation),
        gft.paths.brownian_bridge(LEVEL),
        score_weighting=gft.objectives.weighting.bridge(LEVEL),
        time_sampler=gft.objectives.time_sampling.uniform(EPSILON, 1 - EPSILON),
    )


@pytest.mark.parametrize("correlation", [0.0, 0.9], ids=["independent", "coupled"])
def test_the_true_velocity_and_score_are_its_minimiser_under_any_coupling(correlation):
    rng = np.random.default_rng(0)
    x0, other = rng.standard_normal((2, NUM_ROWS))
    x1 = MEAN + SPREAD * (correlation * x0 + np.sqrt(1 - correlation**2) * other)
    keys = jax.random.split(jax.random.key(1), NUM_ROWS)
    batch = gft.Batch(jnp.asarray(x0, jnp.float32), jnp.asarray(x1, jnp.float32), keys)
    method = objective(correlation)

    @jax.jit
    def row_gradients(params):
        rows = method.prepare(params, None, (), batch, jnp.zeros(()))
        return jax.jacfwd(lambda params: method.loss(params, None, rows, jnp.zeros(())).loss)(params)

    def z_scores(params):
        gradients = np.asarray(row_gradients(jnp.asarray(params, jnp.float32)), np.float64)
        return np.abs(gradients.mean(axis=0)) / gradients.std(axis=0) * np.sqrt(NUM_ROWS)

    assert z_scores([0.0, 0.0, 0.0, 0.0]).max() < 4
    for index in range(4):  # power: another slope or offset of either head is seen
        assert z_scores(0.1 * np.eye(4)[index])[index] > 6


def test_the_weight_makes_the_score_a_prediction_of_the_noise():
    path, t = gft.paths.brownian_bridge(LEVEL), jnp.array([0.01, 0.5, 0.99])
    noise = jnp.array([1.0, -2.0, 0.5])
    point = path.point(t, jnp.zeros(3), jnp.ones(3), noise)
    weight = gft.objectives.weighting.bridge(LEVEL)(t)
    np.testing.assert_allclose(weight * point.score**2, noise**2, rtol=1e-5)
    with pytest.raises(ValueError, match="diffusion is 0; it must be > 0"):
        gft.objectives.weighting.bridge(0)


def test_a_path_without_a_score_is_refused():
    method = gft.objectives.velocity_and_score(
        *heads(0.0), gft.paths.linear(), score_weighting=gft.objectives.weighting.uniform
    )
    batch = gft.Batch(jnp.zeros(2), jnp.ones(2), jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="this path has no conditional score"):
        method.prepare(None, None, (), batch, jnp.zeros(()))


@pytest.mark.slow
def test_a_bridge_under_optimal_transport_is_trained_and_sampled_with_noise():
    """Two heads of their own, Sinkhorn-coupled ends: the SDE lands on the data for two noise levels."""
    network = gft.networks.ResidualMLP(hidden=64, depth=2)
    field = gft.drifts.from_linen(network)

    def velocity(params, t, x, cond=None):
        return field(params["velocity"], t, x)

    def score(params, t, x, cond=None):
        # The network predicts the noise, which is of order one at all times.
        spread = LEVEL * jnp.sqrt(t * (1 - t))
        return -field(params["noise"], t, x) / spread[:, None]

    data = np.random.default_rng(0).choice([-2.0, 2.0], (4096, 1)) + np.random.default_rng(1).normal(
        0, 0.3, (4096, 2)
    )
    data = data.astype(np.float32)
    variables = network.init(jax.random.key(0), jnp.zeros(1), jnp.zeros((1, 2)))
    params = {name: variables["params"] for name in ("velocity", "noise")}
    method = gft.objectives.velocity_and_score(
        velocity,
        score,
        gft.paths.brownian_bridge(LEVEL),
        score_weighting=gft.objectives.weighting.bridge(LEVEL),
        time_sampler=gft.objectives.time_sampling.uniform(EPSILON, 1 - EPSILON),
    )
    tuner = gft.parallel.single_device(gft.finetuner(method, optax.adam(2e-3)))
    stream = gft.pairing.batches(data, batch_size=128, seed=0, coupling=gft.couplings.sinkhorn())
    state = tuner.init(jax.random.key(0), params=params)
    for start in range(0, 2000, 100):
        state, _ = tuner.step_many(state, None, stream.many(start, 100))
    x0 = jax.random.normal(jax.random.key(1), (1024, 2))
    bound = 0.03 + abs(gft.metrics.energy_distance(data[:1024], data[1024:2048]))
    for level in (0.3, LEVEL):
        sample = gft.sampling.sample_sde(
            velocity,
            state.averaged_params,
            x0,
            jax.random.key(2),
            score=score,
            diffusion=gft.diffusions.constant(level),
        )
        assert bool(sample.succeeded)
        assert gft.metrics.energy_distance(sample.x, data[:1024]) < bound
    # Power: without the score the noise spreads the samples, and the distance shows it.
    spread = gft.sampling.sample_sde(
        velocity,
        state.averaged_params,
        x0,
        jax.random.key(2),
        score=lambda params, t, x, cond=None: jnp.zeros_like(x),
        diffusion=gft.diffusions.constant(LEVEL),
    )
    assert gft.metrics.energy_distance(spread.x, data[:1024]) > bound
