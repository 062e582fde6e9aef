"""The terminal objective: its minimiser in closed form, its effective sample size, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import gradient, mean_loss, prepare

import gft_jax as gft
from gft_jax.density_ratio import effective_sample_size
from gft_jax.pairing import row_keys

BASE, TARGET = (0.0, 1.0), (3.0, 0.5)
NUM_ROWS = 100_000


def log_density(law, x):
    mean, sd = law
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd)


def log_ratio(x):
    return log_density(TARGET, x) - log_density(BASE, x)


def moments(w):
    """Mean and standard deviation of ``q^w p^(1 - w)``, normal with the precisions and their means averaged."""
    share = np.array([1 - w, w])
    means, sds = np.array([BASE, TARGET]).T
    precision = np.sum(share / sds**2)
    return np.sum(share * means / sds**2) / precision, precision**-0.5


def velocity_to(law):
    """The marginal velocity from N(0, 1), ``m + slope (x - t m)``, plus what params add to slope and offset."""
    mean, sd = law

    def drift(params, t, x, cond=None):
        slope = (t * sd**2 - (1 - t)) / ((t * sd) ** 2 + (1 - t) ** 2)
        return (slope + params[0]) * x + mean - slope * t * mean + params[1]

    return drift


def rows_of(law, num_rows=NUM_ROWS, seed=0):
    x0, x1 = np.random.default_rng(seed).standard_normal((2, num_rows)).astype(np.float32)
    return gft.Batch(jnp.asarray(x0), jnp.asarray(law[0] + law[1] * x1), row_keys(seed, 0, num_rows))


@pytest.mark.parametrize(("rows_from", "w"), [("target", 0.5), ("base", 0.2)])
def test_the_minimiser_is_the_flow_to_the_geometric_mean(rows_from, w):
    """The gradient vanishes at its marginal velocity; neither near it, nor at that of the blended drift."""
    minimiser, of_base, of_target = (velocity_to(law) for law in (moments(w), BASE, TARGET))

    def drift(params, t, x, cond=None):
        blend = w * of_target(params, t, x) + (1 - w) * of_base(params, t, x)
        return (1 - params[2]) * minimiser(params, t, x) + params[2] * blend

    method = gft.objectives.terminal(drift, log_ratio, rows_from=rows_from)
    batch, temperature = rows_of({"target": TARGET, "base": BASE}[rows_from]), jnp.asarray(1 / w - 1)

    @jax.jit
    def weighted_gradients(all_params):
        rows = method.prepare(None, None, (), batch, temperature)

        def terms(params):
            return method.loss(params, None, rows, temperature)

        def at(params):
            return terms(params).weight[:, None] * jax.jacfwd(lambda params: terms(params).loss)(params)

        return jax.vmap(at)(all_params)

    moves = jnp.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 1.0]])
    gradients = np.asarray(weighted_gradients(moves), np.float64)[..., :2]
    still, steeper, shifted, blended = (
        np.abs(gradients.mean(axis=1)) / gradients.std(axis=1) * np.sqrt(NUM_ROWS)
    )
    assert still.max() < 4
    assert steeper[0] > 6  # power
    assert shifted[1] > 6
    assert blended.max() > 6


def elementwise(params, t, x, cond=None):
    return params["scale"] * x + params["shift"] * t[:, None]


def linear_ratio(x):
    return jnp.sum(x, axis=1)


def test_at_temperature_zero_it_is_flow_matching_bit_for_bit():
    params = {"scale": jnp.asarray(0.3), "shift": jnp.asarray(-1.0)}
    x0, x1 = np.random.default_rng(0).normal(size=(2, 64, 3)).astype(np.float32)
    batch = gft.Batch(jnp.asarray(x0), jnp.asarray(x1), row_keys(0, 0, 64), weight=jnp.linspace(0.5, 2, 64))
    ours, plain = (
        gft.objectives.terminal(elementwise, linear_ratio),
        gft.objectives.flow_matching(elementwise),
    )
    expected, expected_stats = gradient(plain, params, None, batch, 0.0)
    found, stats = gradient(ours, params, None, batch, 0.0)
    warm, _ = gradient(ours, params, None, batch, 0.1)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert not np.isclose(warm[name], value, rtol=1e-3)  # power
    np.testing.assert_array_equal(stats["flow_matching_loss"], expected_stats["flow_matching_loss"])
    assert stats["ratio_weight"] == stats["inverse_ratio_weight"] == 1


def closed_form_sample_size(w):
    """``E[W]^2 / E[W^2]`` of ``W = (p / q)^(1 - w)`` under q."""

    def integral(a):  # of q^(1 - a) p^a
        precision = (1 - a) / TARGET[1] ** 2 + a / BASE[1] ** 2
        first, second = (1 - a) * TARGET[0] / TARGET[1] ** 2, (1 - a) * TARGET[0] ** 2 / TARGET[1] ** 2
        norm = TARGET[1] ** -(1 - a) * BASE[1] ** -a * precision**-0.5
        return norm * np.exp(first**2 / (2 * precision) - second / 2)

    return integral(1 - w) ** 2 / integral(2 * (1 - w))


def test_the_effective_sample_size_from_the_stats():
    """It is the direct one of the batch; where the weights have moments it is the closed form, else above it."""
    batch = rows_of(TARGET)._replace(weight=jnp.full(NUM_ROWS, 3.0))
    method = gft.objectives.terminal(velocity_to(TARGET), log_ratio)
    found = {}
    for w in (0.9, 0.8, 0.5):
        _, stats = mean_loss(method, jnp.zeros(2), None, batch, 1 / w - 1)
        found[w] = float(1 / (stats["ratio_weight"] * stats["inverse_ratio_weight"]))
        direct = effective_sample_size(-(1 - w) * log_ratio(np.asarray(batch.x1, np.float64)))
        np.testing.assert_allclose(found[w], direct, rtol=2e-4)
    np.testing.assert_allclose(closed_form_sample_size(0.5), 0.8 * np.exp(-3.6), rtol=1e-12)  # Bhattacharyya
    np.testing.assert_allclose(found[0.9], closed_form_sample_size(0.9), rtol=5e-3)
    np.testing.assert_allclose(found[0.8], closed_form_sample_size(0.8), rtol=2e-2)
    assert closed_form_sample_size(0.5) < found[0.5] < 0.2


def test_a_constant_in_the_ratio_changes_nothing():
    batch = rows_of(TARGET, 64)
    first = batch.x1[0]

    @jax.jit
    def at(constant, of_first):
        def ratio(x):
            return jnp.where(x == first, of_first, log_ratio(x)) + constant

        method = gft.objectives.terminal(velocity_to(TARGET), ratio)
        return jax.grad(gft.mean_loss, argnums=1, has_aux=True)(method, jnp.zeros(2), None, batch, 1.0)

    expected, _ = at(0.0, 1.0)
    np.testing.assert_allclose(at(20.0, 1.0)[0], expected, rtol=1e-4)
    assert not np.allclose(at(0.0, 2.0)[0], expected, rtol=1e-3)  # power
    np.testing.assert_allclose(at(0.0, 500.0)[0], at(0.0, 60.0)[0], rtol=1e-4)
    assert not np.isfinite(at(500.0, 1.0)[0]).any()  # for the guard of the training step


def test_a_row_whose_weight_underflows_leaves_the_stats_of_the_others():
    """Eagerly: in one program the compiler takes weight and inverse weight together."""
    method = gft.objectives.terminal(velocity_to(TARGET), lambda x: jnp.where(x > 0, 0.0, 500.0))
    batch = gft.Batch(jnp.zeros(4), jnp.array([-1.0, 1.0, 2.0, 3.0]), row_keys(0, 0, 4))
    terms = method.loss(jnp.zeros(2), None, prepare(method, None, None, batch, 1.0), jnp.ones(()))
    np.testing.assert_array_equal(terms.weight, [0, 1, 1, 1])
    np.testing.assert_array_equal(terms.weight * terms.stats["inverse_ratio_weight"], [0, 1, 1, 1])


def test_wrong_input_is_refused(without_hook):
    with pytest.raises(ValueError, match="got a DensityRatio: of a DensityRatio give its field log_ratio"):
        gft.objectives.terminal(velocity_to(TARGET), gft.density_ratio.DensityRatio(log_ratio, 0.5, 1.0, 10))
    with pytest.raises(ValueError, match="'target' or 'base', got 'both'"):
        gft.objectives.terminal(elementwise, linear_ratio, rows_from="both")  # type: ignore[arg-type]
    method = gft.objectives.terminal(elementwise, lambda x: x)
    with pytest.raises(ValueError, match=r"one value a row, shape \(4,\), got shape \(4, 3\)"):
        gft.mean_loss(method, {}, None, gft.Batch(jnp.zeros((4, 3)), jnp.ones((4, 3)), row_keys(0, 0, 4)))
