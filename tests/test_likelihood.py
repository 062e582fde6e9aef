"""Likelihood against Gaussian flows, whose density is known."""

import functools
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import laws, z_scores

from gft_jax import gaussian, paths
from gft_jax.drifts import from_function
from gft_jax.sampling import Hutchinson, bits_per_dimension, log_likelihood, sample_ode

TIGHT = diffrax.PIDController(rtol=1e-9, atol=1e-9)


def gaussian_drift(params, t, x, cond=None):
    """Linear path from N(0, I) to N(mean + cond, std^2 I), independent ends: methods, section 3."""
    mean, std = params[0], params[1]
    mean = mean if cond is None else mean + cond.reshape(-1, *(1,) * (x.ndim - 1))
    t = t.reshape(-1, *(1,) * (x.ndim - 1))
    return mean + (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * (x - t * mean)


def test_exact_log_likelihood_and_its_gradient_are_those_of_the_gaussian(x64):
    """Conditional, for events of rank two; and in the parameters and the data."""
    x1 = np.random.default_rng(0).normal(1.0, 2.0, size=(4, 3, 2))
    cond = np.array([0.0, -1.0, 0.5, 2.0])
    params = jnp.array([0.7, 0.4])

    def density(params, x1):
        z = (x1 - params[0] - cond[:, None, None]) / params[1]
        return jnp.sum(-0.5 * z**2 - jnp.log(params[1]) - 0.5 * math.log(2 * math.pi), axis=(1, 2))

    def estimate(params, x1):
        found = log_likelihood(gaussian_drift, params, x1, cond=cond, num_steps=40)
        return jnp.sum(found.log_likelihood**2), found

    @jax.jit
    def both(params, x1):
        (_, found), gradient = jax.value_and_grad(estimate, (0, 1), has_aux=True)(params, x1)
        expected = jax.grad(lambda *args: jnp.sum(density(*args) ** 2), (0, 1))(params, x1)
        return found, gradient, density(params, x1), expected

    found, gradient, expected, expected_gradient = both(params, x1)
    assert found.succeeded
    assert found.num_evaluations == 6 * 40 + 1
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(found.x0, (x1 - 0.7 - cond[:, None, None]) / 0.4, atol=1e-6)
    for one, other in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_correlated_law_from_a_source_that_is_not_standard(x64):
    """With rows that choose their own steps."""
    _, source, target = laws()
    drift = from_function(gaussian.marginal_velocity(paths.trigonometric(), source, target))
    x1 = gaussian.sample(jax.random.key(0), target, 5)

    @jax.jit
    def estimate(x1):
        return log_likelihood(
            drift,
            None,
            x1,
            stepsize_controller=TIGHT,
            steps_by_row=True,
            source_log_density=functools.partial(gaussian.log_density, source),
        )

    found = estimate(x1)
    assert found.succeeded.tolist() == [True] * 5
    assert len(set(found.num_evaluations.tolist())) > 1
    np.testing.assert_allclose(found.log_likelihood, gaussian.log_density(target, x1), atol=1e-6)


def swirl(params, t, x, cond=None):
    """A drift whose Jacobian is far from diagonal and depends on x: random directions disagree on its trace."""
    return jnp.sin(x @ params + t[:, None])


MATRIX = (2 * np.eye(3) + np.random.default_rng(1).normal(size=(3, 3))).astype(np.float32)


@pytest.mark.parametrize("draw", [jax.random.rademacher, jax.random.normal], ids=lambda draw: draw.__name__)
def test_hutchinson_is_unbiased_at_fixed_steps(draw):
    """The same row, each time with a key of its own. Power: directions of variance 1.2 are found out."""
    num_rows = 2000
    x1 = np.tile(np.array([0.3, 0.2, -0.4], np.float32), (num_rows, 1))
    fixed = {"solver": diffrax.Heun(), "num_steps": 8}
    exact = log_likelihood(swirl, MATRIX, x1[:1], **fixed)

    def errors(draw, num_probes=1):
        found = log_likelihood(
            swirl, MATRIX, x1, hutchinson=Hutchinson(jax.random.key(0), num_probes, draw), **fixed
        )
        assert found.num_evaluations == 16
        np.testing.assert_allclose(found.x0, np.tile(exact.x0, (num_rows, 1)), rtol=1e-4, atol=1e-5)
        return np.asarray(found.log_likelihood - exact.log_likelihood)

    one = errors(draw)
    assert z_scores(one) < 4
    assert z_scores(errors(lambda key, shape, dtype: 1.2**0.5 * draw(key, shape, dtype))) > 5
    if draw is jax.random.rademacher:
        # Four directions have a quarter of the variance (of 2000 rows: known within 10 %).
        ratio = errors(draw, num_probes=4).var() / one.var()
        assert 0.2 < ratio < 0.3


def test_directions_belong_to_the_row_and_chunks_change_nothing():
    x1 = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    key = jax.random.key(4)
    fixed = {"solver": diffrax.Heun(), "num_steps": 4}
    whole = log_likelihood(swirl, MATRIX, x1, hutchinson=Hutchinson(key), **fixed)
    chunked = log_likelihood(swirl, MATRIX, x1, hutchinson=Hutchinson(key), chunk_size=2, **fixed)
    assert isinstance(chunked.log_likelihood, np.ndarray)
    np.testing.assert_allclose(chunked.log_likelihood, whole.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(chunked.x0, whole.x0, rtol=1e-5, atol=1e-6)
    assert chunked.succeeded.tolist() == [True] * 5
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(5))
    order = np.array([4, 1])
    few = log_likelihood(swirl, MATRIX, x1[order], hutchinson=Hutchinson(keys[order]), **fixed)
    np.testing.assert_allclose(few.log_likelihood, whole.log_likelihood[order], rtol=1e-5)
    # A grid from data to source, and the code that it leads to.
    grid = np.linspace(1.0, 0.0, 5)
    on_grid = log_likelihood(swirl, MATRIX, x1, hutchinson=Hutchinson(key), solver=diffrax.Heun(), times=grid)
    np.testing.assert_allclose(on_grid.log_likelihood, whole.log_likelihood, rtol=1e-6)
    code = sample_ode(swirl, MATRIX, x1, times=grid, solver=diffrax.Heun())
    np.testing.assert_allclose(on_grid.x0, code.x, rtol=1e-5, atol=1e-6)


def test_failures_surface():
    x1 = np.array([[0.1], [0.2]], np.float32)
    stiff = from_function(lambda t, x: 1e6 * jnp.sin(1e3 * x))
    failed = log_likelihood(stiff, None, x1, max_steps=5)
    assert not failed.succeeded
    assert failed.result == diffrax.RESULTS.max_steps_reached
    # The state may be finite where the source has no density.
    uniform = lambda x: jnp.where(jnp.abs(x[:, 0]) < 1, 0.0, -jnp.inf)  # noqa: E731
    away = from_function(lambda t, x: -2 * jnp.ones_like(x))
    options = {"source_log_density": uniform, "solver": diffrax.Euler(), "num_steps": 2}
    assert not log_likelihood(away, None, x1, **options).succeeded


def test_bits_per_dimension_of_a_gaussian_and_of_rescaled_data():
    """Levels y = x / bin_width: the density of y in bits, which no longer depends on the unit of x."""
    x = np.random.default_rng(0).normal(size=(3, 4))
    nats = -0.5 * (x**2).sum(1) - 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(bits_per_dimension(nats, 4), -nats / np.log(2) / 4, rtol=1e-6)
    levels = x * 128
    per_level = -0.5 * (levels**2).sum(1) / 128**2 - 4 * np.log(128 * np.sqrt(2 * np.pi))
    found = bits_per_dimension(nats, 4, bin_width=2 / 256)
    np.testing.assert_allclose(found, -per_level / np.log(2) / 4, rtol=1e-5)
    np.testing.assert_allclose(found - bits_per_dimension(nats, 4), 7.0, rtol=1e-5)


def test_mistakes_are_named(without_hook):
    x1 = np.ones((2, 3), np.float32)
    key = jax.random.key(0)
    rows = [
        ({"x1": np.ones((0, 3), np.float32)}, r"not empty, got shape \(0, 3\)"),
        ({"x1": np.float32(1)}, r"x1 must be \[batch, \*event\] and not empty, got shape \(\)"),
        ({"cond": np.ones(1)}, r"cond must have one row for each of the 2 samples, got shape \(1,\)"),
        ({"t1": 1.5}, "t0=0.0 and t1=1.5"),
        ({"t0": 0.9, "t1": 0.2}, "backwards in flow time: got 0.2 to 0.9"),
        ({"times": [0.0, 1.0]}, "backwards in flow time: got 0.0 to 1.0"),
        ({"times": [1.0, 0.0], "num_steps": 3}, "give it alone"),
        ({"solver": diffrax.Euler()}, "Euler does not give"),
        ({"hutchinson": key}, r"hutchinson must be Hutchinson\(key\) or None, got Array"),
        ({"hutchinson": Hutchinson(0)}, "must be typed, from jax.random.key, got 0"),
        ({"hutchinson": Hutchinson(key, 0)}, "num_probes must be >= 1, got 0"),
        ({"hutchinson": Hutchinson(key, 1.5)}, "num_probes must be an integer, got 1.5"),
        ({"hutchinson": Hutchinson(jax.random.split(key, 3))}, r"each of the 2 rows, got shape \(3,\)"),
        ({"source_log_density": lambda x: x}, r"shape \(2,\), got \(2, 3\)"),
    ]
    for change, message in rows:
        arguments = {"x1": x1} | change
        with pytest.raises(ValueError, match=message):
            log_likelihood(swirl, MATRIX, arguments.pop("x1"), **arguments)
    for arguments in ({"num_dimensions": 0}, {"num_dimensions": 3, "bin_width": 0.0}):
        with pytest.raises(ValueError, match="num_dimensions must be >= 1 and bin_width positive"):
            bits_per_dimension(np.zeros(2), **arguments)
