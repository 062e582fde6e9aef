"""The relative entropy of path measures against its closed form and its integral."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import gft_jax as gft
from gft_jax.metrics import path_kl

MEAN, SPREAD, LEVEL = 2.0, 0.5, 0.7
BASE, TARGET = (0.0, 1.0), (MEAN, SPREAD)


def coefficients(t, law):
    """Slope and offset of velocity and of score along the linear path from N(0, 1) to a normal law."""
    mean, sd = law
    variance = (1 - t) ** 2 + (t * sd) ** 2
    slope = (t * sd**2 - (1 - t)) / variance
    return (slope, mean - slope * t * mean), (-1 / variance, t * mean / variance), variance


def sde_drift(law):
    def drift(params, t, x, cond=None):
        (slope, offset), (score_slope, score_offset), _ = coefficients(t, law)
        return (slope + LEVEL**2 / 2 * score_slope) * x + offset + LEVEL**2 / 2 * score_offset

    return drift


def rate(t, level=LEVEL):
    """``E |b - b'|^2 / (2 g^2)`` under the target's marginals."""
    pairs = []
    for law in (TARGET, BASE):
        velocity, score, _ = coefficients(t, law)
        pairs.append([a + LEVEL**2 / 2 * b for a, b in zip(velocity, score, strict=True)])
    slope, offset = pairs[0][0] - pairs[1][0], pairs[0][1] - pairs[1][1]
    _, _, variance = coefficients(t, TARGET)
    expected = (slope * t * MEAN + offset) ** 2 + slope**2 * variance
    return expected / (2 * level**2)


def closed_form(grid, level=LEVEL):
    """What the mean is for processes of Euler and Maruyama: the sum over the inner steps of ``h rate``."""
    return np.sum(np.diff(grid)[1:-1] * rate(grid[1:-2], level))


def test_between_gaussian_flows_it_is_the_closed_form():
    grid = np.linspace(0.0, 1.0, 21)
    noise = np.random.default_rng(0).standard_normal((21, 20_000))
    variance = (1 - grid) ** 2 + (grid * SPREAD) ** 2
    paths = (grid * MEAN)[:, None] + np.sqrt(variance)[:, None] * noise
    estimate = jax.jit(
        lambda paths: path_kl(
            sde_drift(TARGET), None, sde_drift(BASE), None, paths, grid, gft.diffusions.constant(LEVEL)
        )
    )
    values = np.asarray(estimate(paths.astype(np.float32)), np.float64)
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - closed_form(grid)) < 4 * error
    assert abs(values.mean() - closed_form(grid, level=1.05 * LEVEL)) > 10 * error  # power
    itself = path_kl(
        sde_drift(BASE), None, sde_drift(BASE), None, paths, grid, gft.diffusions.constant(LEVEL)
    )
    np.testing.assert_array_equal(itself, 0.0)


def test_with_finer_grids_it_tends_to_the_integral():
    """Rows at the mean and one standard deviation beside it have the moments that a quadratic integrand sees."""

    found = []
    for num_steps in (100, 200):
        grid = np.linspace(0.05, 0.95, num_steps + 1)
        spread = np.sqrt((1 - grid) ** 2 + (grid * SPREAD) ** 2)
        paths = np.stack([grid * MEAN - spread, grid * MEAN + spread], axis=1)
        shares = path_kl(
            sde_drift(TARGET), None, sde_drift(BASE), None, paths, grid, gft.diffusions.constant(LEVEL)
        )
        found.append(np.mean(np.asarray(shares, np.float64)))
    integral, _ = quad(rate, 0.05, 0.95)
    errors = np.array(found) - integral
    assert abs(errors[0] / errors[1] - 2) < 0.02  # of first order in the step
    assert abs(2 * found[1] - found[0] - integral) < 1e-4 * integral
    assert abs(errors[1]) > 1e-3 * integral  # power: the limit is not met by chance


def test_events_are_summed_and_both_drifts_see_the_condition():
    rng = np.random.default_rng(0)
    paths = rng.normal(size=(4, 2, 2, 3)).astype(np.float32)
    grid, cond = np.array([0.1, 0.2, 0.4, 0.7]), np.array([1.0, -2.0], np.float32)

    def drift(scale, t, x, cond=None):
        return scale * cond[:, None, None] * x + t[:, None, None]

    def level(t):
        return 0.5 + t

    found = path_kl(drift, 2.0, drift, -1.0, paths, grid, level, cond)
    steps = np.diff(grid) / (2 * level(grid[:-1]) ** 2)
    squares = np.sum((3.0 * cond[:, None, None] * paths[:-1].astype(float)) ** 2, axis=(2, 3))
    np.testing.assert_allclose(found, steps @ squares, rtol=1e-5)


def test_half_precision_is_summed_in_single_and_wider_drifts_are_kept(x64):
    rng = np.random.default_rng(1)
    grid, level = np.linspace(0.1, 0.9, 201), gft.diffusions.constant(0.5)
    paths = jnp.asarray(rng.normal(size=(201, 3, 2)), jnp.bfloat16)

    def drift(scale, t, x, cond=None):
        return scale.astype(x.dtype) * x

    def wide_drift(scale, t, x, cond=None):
        return scale * x

    one, other = jnp.asarray(1.0, jnp.float64), jnp.asarray(0.0, jnp.float64)
    expected = np.sum(np.asarray(paths[:-1], float) ** 2, axis=-1).sum(axis=0) * (0.8 / 200) / (2 * 0.25)
    found = path_kl(drift, one, drift, other, paths, grid, level)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    found = path_kl(wide_drift, one, wide_drift, other, paths.astype(jnp.float32), grid, level)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_paths_of_sample_sde_give_the_same_number_within_one_program():
    def velocity(params, t, x, cond=None):
        (slope, offset), _, _ = coefficients(t, TARGET)
        return slope * x + offset

    def score(params, t, x, cond=None):
        _, (slope, offset), _ = coefficients(t, TARGET)
        return slope * x + offset

    level = gft.diffusions.constant(LEVEL)
    x0 = jax.random.normal(jax.random.key(0), (20_000,))

    @jax.jit
    def shares(x0):
        sample = gft.sampling.sample_sde(
            velocity, None, x0, jax.random.key(1), score=score, diffusion=level, num_steps=50, save_steps=True
        )
        return path_kl(sde_drift(TARGET), None, sde_drift(BASE), None, sample.trajectory, sample.times, level)

    values = np.asarray(shares(x0))
    error = values.std() / np.sqrt(len(values))
    expected = closed_form(np.linspace(0.0, 1.0, 51))
    assert (
        abs(values.mean() - expected) < 4 * error + 0.02 * expected
    )  # the scheme's own error, of order 1 / 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": np.array([0.0, 0.5])}, "one for each of the 3 states"),
        ({"times": np.array([0.0, 0.6, 0.5])}, "times must increase"),
        ({"times": np.array([0.0, np.nan, 0.5])}, "times must increase"),
        ({"times": np.array([0.0, 0.5, 1.0])}, "all steps touch flow time 0 or 1"),
        ({"times": np.array([-1.0, 0.5, 0.9])}, r"in \[0, 1\], got times from -1.0 to 0.9"),
        ({"times": np.array([0.1, 0.5, 1.1])}, "got times from 0.1 to 1.1"),
        ({"trajectory": jnp.zeros(3)}, r"\[num_times, batch, \*event\], got shape \(3,\)"),
        ({"cond": np.zeros(1)}, r"cond must have one row for each of the 4 samples, got shape \(1,\)"),
        ({"diffusion": 1.0}, "function of flow time, got 1.0"),
        ({"diffusion": lambda t: jnp.ones((1, 4))}, r"one noise level a row, shape \(2,\), got \(1, 4\)"),
        ({"diffusion": gft.diffusions.constant(0)}, "gives 0.0 at flow time 0.25"),
        ({"diffusion": lambda t: jnp.where(t > 0.3, jnp.inf, 1.0)}, "gives inf at flow time 0.5"),
    ],
)
def test_mistakes_are_named(change, message, without_hook):
    arguments = {
        "trajectory": jnp.zeros((3, 4)),
        "times": np.array([0.25, 0.5, 0.75]),
        "diffusion": gft.diffusions.constant(1.0),
    }
    with pytest.raises(ValueError, match=message):
        path_kl(sde_drift(BASE), None, sde_drift(BASE), None, **(arguments | change))


def test_under_jit_known_levels_are_checked_and_traced_times_refused():
    paths, times = jnp.ones((3, 4)), np.array([0.25, 0.5, 0.75])

    def zero(params, t, x, cond=None):
        return jnp.zeros_like(x)

    def one(params, t, x, cond=None):
        return jnp.ones_like(x)

    def shares(level, times=times):
        return path_kl(one, None, zero, None, paths, times, lambda t: jnp.full_like(t, level))

    with pytest.raises(ValueError, match="diffusion gives 0"):
        jax.jit(lambda: shares(0.0))()
    # A level that is traced has no value yet; the shares are those of the formula, and differentiable in it.
    np.testing.assert_allclose(jax.jit(shares)(2.0), 0.5 / (2 * 2.0**2))
    slope = jax.grad(lambda level: shares(level)[0])(2.0)
    np.testing.assert_allclose(slope, -0.5 / 2.0**3)
    with pytest.raises(ValueError, match="times must be known at trace time"):
        jax.jit(lambda times: shares(1.0, times))(times)
