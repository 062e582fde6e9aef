"""The relative entropy of path measures against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def closed_form(grid, level=LEVEL):
    """Sum over the inner steps of ``h E |b - b'|^2 / (2 g^2)`` under the target's marginals."""
    t = grid[1:-2]
    pairs = []
    for law in (TARGET, BASE):
        velocity, score, _ = coefficients(t, law)
        pairs.append([a + LEVEL**2 / 2 * b for a, b in zip(velocity, score, strict=True)])
    slope, offset = pairs[0][0] - pairs[1][0], pairs[0][1] - pairs[1][1]
    _, _, variance = coefficients(t, TARGET)
    expected = (slope * t * MEAN + offset) ** 2 + slope**2 * variance
    return np.sum(np.diff(grid)[1:-1] * expected / (2 * level**2))


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
    # The other way round the marginals would be the base's: another number.
    np.testing.assert_allclose(
        path_kl(sde_drift(BASE), None, sde_drift(BASE), None, paths, grid, gft.diffusions.constant(LEVEL)),
        0.0,
    )


def test_paths_of_sample_sde_give_the_same_number():
    def velocity(params, t, x, cond=None):
        (slope, offset), _, _ = coefficients(t, TARGET)
        return slope * x + offset

    def score(params, t, x, cond=None):
        _, (slope, offset), _ = coefficients(t, TARGET)
        return slope * x + offset

    level = gft.diffusions.constant(LEVEL)
    x0 = jax.random.normal(jax.random.key(0), (20_000,))
    sample = gft.sampling.sample_sde(
        velocity, None, x0, jax.random.key(1), score=score, diffusion=level, num_steps=50, save_steps=True
    )
    values = np.asarray(
        path_kl(sde_drift(TARGET), None, sde_drift(BASE), None, sample.trajectory, sample.times, level)
    )
    error = values.std() / np.sqrt(len(values))
    expected = closed_form(np.linspace(0.0, 1.0, 51))
    assert (
        abs(values.mean() - expected) < 4 * error + 0.02 * expected
    )  # the scheme's own error, of order 1 / 50


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 0.5], "one for each of the 3 states"),
        ([0.0, 0.6, 0.5], "times must increase"),
        ([0.0, 0.5, 1.0], "all steps touch flow time 0 or 1"),
    ],
)
def test_grids_that_make_no_sense_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        path_kl(
            sde_drift(BASE),
            None,
            sde_drift(BASE),
            None,
            jnp.zeros((3, 4)),
            np.array(times),
            gft.diffusions.constant(1.0),
        )
