"""MeanFlow beside closed forms between Gaussians, flow matching and gradual fine-tuning, in steps and adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_toy import affine, at_time, flat, gradient, laws, mean_loss, prepare, z_scores
from mean_flow_toy import BASE, PARAMS, one_time_affine, rows_of, two_time_affine
from programs import on_fake_devices

import gft_jax as gft
from gft_jax.cooling import effective_target_weight
from gft_jax.drifts import from_linen, lifted, two_times
from gft_jax.gaussian import Gaussian
from gft_jax.networks import ResidualMLP
from gft_jax.networks.lora import low_rank
from gft_jax.objectives import gradual_mean_flow, mean_flow

LINEAR = gft.paths.linear()


def around(average):
    """A two-time drift: a known average velocity and what four parameters, zero there, add to it."""

    def drift(params, t, s, x, cond=None):
        a, b, c, d = params
        shift = a + b * t + c * (s - t)
        return average(t, s, x) + shift[:, None] * x + d * jnp.sin(t + 2 * s)[:, None]

    return drift


@jax.jit(static_argnums=0)
def row_gradients(objective, params, base_params, batch, temperature):
    """Gradients of the rows' losses ``[rows, parameters]``."""
    rows = objective.prepare(params, base_params, (), batch, temperature)
    return jax.jacfwd(lambda p: objective.loss(p, base_params, rows, temperature).loss)(params)


@pytest.mark.parametrize("w", [1.0, 0.4])
def test_the_average_of_the_flow_is_the_optimum_and_no_other(x64, w):
    """Independent ends: the target varies about the average velocity of the blended drift, and its mean is that."""
    variances = jnp.asarray([[2.0, 0.5], [0.2, 3.0]])  # of the pretrained and of the target law

    def deviations(t):
        return jnp.sqrt((1 - t[:, None]) ** 2 + t[:, None] ** 2 * variances[:, None])

    def velocity(t, x):
        """Of both laws: the logarithmic derivatives of their standard deviations times x."""
        return (t[:, None] * variances[:, None] - (1 - t[:, None])) / deviations(t) ** 2 * x

    def average(t, s, x):
        """The flow of the blended drift stretches by the blended standard deviation."""
        stretch = deviations(s) / deviations(t)
        moved = stretch[0] ** (1 - w) * stretch[1] ** w * x
        length = jnp.where(s > t, s - t, 1.0)[:, None]
        v_base, v_target = velocity(t, x)
        return jnp.where((s > t)[:, None], (moved - x) / length, (1 - w) * v_base + w * v_target)

    objective = gradual_mean_flow(
        around(average),
        base_drift=lambda params, t, x, cond=None: velocity(t, x)[0],
        same_time=0.5,
        time_sampler=gft.objectives.time_sampling.uniform(0.0, 0.95),
    )
    target = Gaussian(jnp.zeros(2), jnp.diag(variances[1]))
    batch, temperature = rows_of(target, 20_000), jnp.asarray(1 / w - 1)
    at_optimum = row_gradients(objective, jnp.zeros(4), (), batch, temperature)
    assert np.all(z_scores(at_optimum) < 4)
    for place in range(4):
        away = jnp.zeros(4).at[place].set(0.2)
        assert z_scores(row_gradients(objective, away, (), batch, temperature))[place] > 6


@pytest.mark.parametrize("matrix", [None, "monge"])
def test_under_a_straight_coupling_the_target_is_the_average_velocity_itself(x64, matrix):
    """Lines of optimal transport do not cross: the conditional velocity is the marginal one, and nothing varies."""
    source, _, target = laws()
    map_ = gft.gaussian.monge_map(source, target)
    average = gft.gaussian.average_velocity(LINEAR, source, target, map_.matrix @ source.cov)
    batch = rows_of(target, 64, None if matrix is None else map_.matrix)
    rows = prepare(mean_flow(around(average), same_time=0.25), jnp.zeros(4), None, batch)
    u = average(rows.path.t, rows.s, rows.path.x)
    error = np.abs(rows.target - u).max()
    assert (rows.s > rows.path.t).sum() == 48
    assert error < 1e-9 if matrix else error > 0.1  # power: independent ends


@pytest.mark.parametrize("beta", [0.0, 1.5])
def test_without_intervals_it_is_flow_matching_and_gradual(x64, beta):
    batch = rows_of(laws()[2], 8)._replace(weight=jnp.arange(1.0, 9.0))
    for ours, theirs in (
        (mean_flow(two_time_affine, same_time=1.0), gft.objectives.flow_matching(one_time_affine)),
        (gradual_mean_flow(two_time_affine, same_time=1.0), gft.objectives.gradual(one_time_affine)),
    ):
        (slope, stats), (expected, others) = (gradient(o, PARAMS, BASE, batch, beta) for o in (ours, theirs))
        np.testing.assert_allclose(flat(slope), flat(expected), rtol=1e-12)
        assert stats.keys() == others.keys()
        for name, value in stats.items():
            np.testing.assert_allclose(value, others[name], rtol=1e-12)
    mixed = mean_flow(two_time_affine)
    assert np.abs(flat(gradient(mixed, PARAMS, BASE, batch, beta)[0]) - flat(expected)).max() > 1e-2


def test_intervals_that_shrink_lead_to_flow_matching(x64):
    batch = rows_of(laws()[2], 8)
    expected = gradient(
        gft.objectives.flow_matching(one_time_affine, time_sampler=at_time(0.5)), PARAMS, None, batch, 0.0
    )[0]
    distances = []
    for length in (1e-1, 1e-2, 1e-3):
        sampler = gft.objectives.time_sampling.uniform(0.5, 0.5 + length)
        slope, _ = gradient(
            mean_flow(two_time_affine, time_sampler=sampler, same_time=0.0), PARAMS, None, batch, 0.0
        )
        distances.append(np.abs(flat(slope) - flat(expected)).max())
    assert distances[2] < 1e-2 * np.abs(flat(expected)).max()
    np.testing.assert_allclose(distances[1] / distances[2], 10, rtol=0.2)  # of first order


def test_the_target_is_the_identity_by_finite_differences(x64):
    """``v + (s - t) du/dt``, at zero temperature of the data alone, above it of the blend."""
    batch = rows_of(laws()[2], 8)
    objective = gradual_mean_flow(two_time_affine, base_drift=affine, same_time=0.5)
    for beta in (0.0, 3.0):
        rows = jax.device_get(prepare(objective, PARAMS, BASE, batch, beta))
        t, x, s = rows.path.t, rows.path.x, rows.s
        w = 1 / (1 + beta)
        base = affine(BASE, t, x)
        v = w * rows.path.velocity + (1 - w) * base
        h = 1e-6
        ahead, behind = (two_time_affine(PARAMS, t + e, s, x + e * v) for e in (h, -h))
        np.testing.assert_allclose(rows.target, v + (s - t)[:, None] * (ahead - behind) / (2 * h), atol=1e-7)
        np.testing.assert_array_equal(s > t, np.arange(8) % 2 == 0)
        np.testing.assert_allclose(rows.base_velocity, base if beta else 0 * base)


def test_both_times_of_an_interval_have_the_law_of_their_order():
    batch = rows_of(laws()[2], 4000)
    rows = prepare(mean_flow(two_time_affine, same_time=0.5), PARAMS, None, batch)
    t, s = (np.asarray(times).reshape(-1, 2) for times in (rows.path.t, rows.s))
    for times, law in (
        (t[:, 0], lambda u: 1 - (1 - u) ** 2),
        (s[:, 0], lambda u: u**2),
        (t[:, 1], lambda u: u),
    ):
        laws_of_uniform = [
            np.abs(np.mean(g(times)) - 0.5) * np.sqrt(12 * 2000) for g in (law, lambda u: u**3)
        ]
        assert laws_of_uniform[0] < 4 < laws_of_uniform[1]
    np.testing.assert_array_equal(s[:, 1], t[:, 1])
    alone = prepare(gft.objectives.flow_matching(one_time_affine), PARAMS, None, batch)
    np.testing.assert_array_equal(rows.path.t[1::2], alone.t[1::2])  # those of flow matching


def test_the_adaptive_weight_is_a_power_of_the_error(x64):
    batch = rows_of(laws()[2], 8)
    settings = {"same_time": 0.5, "weighting": lambda t: 2 * t}
    plain = mean_flow(two_time_affine, adaptive_power=0.0, **settings)
    rows = prepare(plain, PARAMS, None, batch)
    squared = np.sum((two_time_affine(PARAMS, rows.path.t, rows.s, rows.path.x) - rows.target) ** 2, -1)
    k = 2 * np.asarray(rows.path.t)
    loss, stats = mean_loss(
        mean_flow(two_time_affine, adaptive_power=0.5, adaptive_offset=0.1, **settings),
        PARAMS,
        None,
        batch,
        0.0,
    )
    np.testing.assert_allclose(loss, np.mean(k * squared / np.sqrt(squared + 0.1)), rtol=1e-12)
    np.testing.assert_allclose(stats["mean_flow_loss"], np.mean((k * squared)[::2]), rtol=1e-12)
    np.testing.assert_allclose(stats["flow_matching_loss"], np.mean((k * squared)[1::2]), rtol=1e-12)

    def of_power(p):
        return mean_flow(around(lambda t, s, x: 0 * x), same_time=0.5, adaptive_power=p)

    # The weight is held fixed: a row's gradient is that of its squared error, times the weight.
    weighted, alone = (row_gradients(of_power(p), jnp.ones(4), None, batch, 0.0) for p in (2.0, 0.0))
    factors = (weighted / alone)[:, np.array([0, 1, 3])]  # without an interval, the third has no effect
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape), rtol=1e-9)
    assert np.ptp(factors[:, 0]) > 0


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_moments_measure_the_target_weight_of_a_student_that_has_followed(x64, power):
    source, _, target = laws()
    map_ = gft.gaussian.monge_map(source, target)
    v = gft.gaussian.marginal_velocity(LINEAR, source, target, map_.matrix @ source.cov)

    def blended(params, t, s, x, cond=None):
        return params * v(t, x) + (1 - params) * affine(BASE, t, x)

    objective = gradual_mean_flow(
        blended, base_drift=lambda params, t, x, cond=None: affine(params, t, x), adaptive_power=power
    )
    batch = rows_of(target, 64, map_.matrix)
    for reached in (0.3, 0.2):
        _, stats = mean_loss(objective, jnp.asarray(reached), BASE, batch, 1 / 0.3 - 1)
        moments = stats["displacement_squared"], stats["displacement_along_target"]
        np.testing.assert_allclose(effective_target_weight(*moments), reached, rtol=1e-9)
    assert mean_loss(objective, jnp.asarray(0.3), BASE, batch, 0.0)[1]["displacement_squared"] == 0


def test_microbatches_make_the_same_step():
    batch = rows_of(laws()[2], 16)._replace(weight=jnp.arange(1.0, 17.0))
    params, base = jax.tree.map(np.float32, (PARAMS, BASE))
    states = []
    for parts in (1, 2):
        objective = gradual_mean_flow(two_time_affine, base_drift=affine)
        tuner = gft.finetuner(
            objective, optax.sgd(0.1), gft.cooling.constant(temperature=1.0), num_microbatches=parts
        )
        state = tuner.init(jax.random.key(0), base, params)
        states.append(jax.jit(tuner.step)(state, base, batch))
    (one, info), (two, other) = states
    np.testing.assert_allclose(flat(one.params), flat(two.params), rtol=1e-5)
    assert np.abs(flat(one.params) - flat(params)).max() > 1e-2
    for name in info.stats:
        np.testing.assert_allclose(info.stats[name], other.stats[name], rtol=1e-5)


def test_adapters_start_at_the_base_and_learn_its_average_first():
    """At infinite temperature the base is the optimum where s = t, and what is learned is the second time alone."""
    network = ResidualMLP(hidden=8, depth=1, time_features=4, two_times=True)
    x = jnp.ones((1, 2))
    lora = low_rank(["block_0/kernel"], rank=1, whole=["second_time/last/*"])
    drift = lifted(lora.on_activations, two_times(from_linen(network)))
    fresh = jax.jit(network.init)(jax.random.key(0), x[:, 0], x)["params"]
    base = jax.tree.map(lambda leaf: leaf + 0.1, fresh)
    base["second_time"]["last"] = fresh["second_time"]["last"]
    batch = rows_of(laws()[2], 16)
    for same_time, moves in ((1.0, False), (0.75, True)):
        tuner = gft.finetuner(
            gradual_mean_flow(drift, same_time=same_time),
            optax.sgd(1.0),
            gft.cooling.constant(target_weight=1e-9),
            adapter=lora.adapter,
        )
        state, info = jax.jit(tuner.step)(tuner.init(jax.random.key(0), base), base, batch)
        assert (info.grad_norm > 1e-2) == moves
        assert info.stats["displacement_squared"] < 1e-10
        assert (np.abs(state.params["second_time/last/kernel"].delta).max() > 1e-4) == moves


@pytest.mark.slow
def test_a_step_is_the_same_on_any_number_of_devices():
    printed = {name: float(value) for name, value in on_fake_devices("mean_flow_program.py").items()}
    assert printed.pop("size") > 1e-2
    assert len(printed) == 4
    assert max(printed.values()) < 1e-4, printed
