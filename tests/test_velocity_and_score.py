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


def test_its_terms_are_the_weighted_errors_of_both_heads_under_their_condition():
    path, num_rows = gft.paths.brownian_bridge(LEVEL), 6

    def head(scale):
        return lambda params, t, x, cond=None: scale * cond[:, None] * x + t[:, None]

    method = gft.objectives.velocity_and_score(
        head(2.0),
        head(-3.0),
        path,
        score_weighting=lambda t: 1 + t,
        time_sampler=gft.objectives.time_sampling.uniform(EPSILON, 1 - EPSILON),
        weighting=lambda t: 5 * t**2,
    )
    random = np.random.default_rng(0)
    x0, x1 = jnp.asarray(random.normal(size=(2, num_rows, 3)), jnp.float32)
    cond, weight = jnp.asarray(random.uniform(1, 2, (2, num_rows)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), num_rows)

    @jax.jit
    def terms_and_rows():
        prepared = method.prepare(None, None, (), gft.Batch(x0, x1, keys, cond, weight=weight), jnp.zeros(()))
        return method.loss(None, None, prepared, jnp.zeros(())), prepared[0]

    terms, rows = jax.device_get(terms_and_rows())
    t = rows.t.astype(float)[:, None]
    # The conditional velocity and score of the bridge, from the point alone.
    mean, spread = (1 - t) * x0 + t * x1, LEVEL**2 * t * (1 - t)
    velocity = x1 - x0 + (1 - 2 * t) / (2 * t * (1 - t)) * (rows.x - mean)
    of_velocity = np.sum((2 * cond[:, None] * rows.x + t - velocity) ** 2, axis=1) * 5 * t[:, 0] ** 2
    of_score = np.sum((-3 * cond[:, None] * rows.x + t + (rows.x - mean) / spread) ** 2, axis=1)
    of_score *= 1 + t[:, 0]
    np.testing.assert_allclose(terms.stats["flow_matching_loss"], of_velocity, rtol=1e-4)
    np.testing.assert_allclose(terms.stats["score_matching_loss"], of_score, rtol=1e-4)
    np.testing.assert_allclose(terms.loss, of_velocity + of_score, rtol=1e-4)
    np.testing.assert_array_equal(terms.weight, weight)


def test_the_weight_makes_the_score_a_prediction_of_the_noise():
    path, t = gft.paths.brownian_bridge(LEVEL), jnp.array([0.01, 0.5, 0.99])
    noise = jnp.array([1.0, -2.0, 0.5])
    point = path.point(t, jnp.zeros(3), jnp.ones(3), noise)
    weight = gft.objectives.weighting.bridge(LEVEL)(t)
    np.testing.assert_allclose(weight * point.score**2, noise**2, rtol=1e-5)
    with pytest.raises(ValueError, match="diffusion is 0; it must be > 0"):
        gft.objectives.weighting.bridge(0)


@pytest.mark.parametrize(
    ("path", "score_weighting", "message"),
    [
        (gft.paths.linear(), gft.objectives.weighting.uniform, "this path has no conditional score"),
        (
            gft.paths.brownian_bridge(LEVEL),
            lambda t: t[:, None],
            r"score_weighting\(t\) must have one value a row, shape \(2,\), got shape \(2, 1\)",
        ),
    ],
)
def test_what_makes_no_regression_is_refused(path, score_weighting, message):
    method = gft.objectives.velocity_and_score(
        *heads(0.0),
        path,
        score_weighting=score_weighting,
        time_sampler=gft.objectives.time_sampling.uniform(EPSILON, 1 - EPSILON),
    )
    batch = gft.Batch(jnp.zeros(2), jnp.ones(2), jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda batch: method.prepare(None, None, (), batch, jnp.zeros(())), batch)


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
