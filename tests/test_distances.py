import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import normal, z_score

from gft_jax.metrics import NotFinite, energy_distance, frechet_distance, one_step_w2, prdc, sliced_w2, w2


def test_w2_of_a_shifted_set_is_the_length_of_the_shift():
    x = normal(40, 2, 3)
    shift = normal(2, 3, seed=1)
    shuffled = np.random.default_rng(2).permutation(x)
    np.testing.assert_allclose(w2(x, shuffled + shift), np.linalg.norm(shift), rtol=1e-12)
    assert w2(x, shuffled) == 0


def test_w2_in_one_dimension_pairs_the_sorted():
    x, y = normal(200), 1 + 3 * normal(200, seed=1)
    expected = np.sqrt(np.mean((np.sort(x) - np.sort(y)) ** 2))
    np.testing.assert_allclose(w2(x, y), expected, rtol=1e-12)
    np.testing.assert_allclose(w2(x[:, None], y[:, None]), expected, rtol=1e-12)
    # Arrays of jax are as good; their own precision is all that is lost.
    np.testing.assert_allclose(w2(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-6)


def test_w2_of_gaussians_is_the_closed_form_up_to_the_monte_carlo_error():
    """``W2^2 = m^2 + (s - 1)^2`` in one dimension, where the bias (0.008) is below the error of 40 values (0.015)."""
    m, s = 1.0, 1.5
    x, y = normal(40, 300), m + s * normal(40, 300, seed=1)
    values = [w2(a, b) for a, b in zip(x, y, strict=True)]
    expected = math.sqrt(m**2 + (s - 1) ** 2)
    assert abs(z_score(values, expected)) < 3
    assert z_score(values, 1.1 * expected) < -5
    assert z_score(values, m) > 5  # what the means alone would give


def test_w2_needs_equal_sizes_and_finite_samples():
    x = normal(6, 2)
    with pytest.raises(ValueError, match=r"got x \(6, 2\) and y \(4, 2\): use 4 of each"):
        w2(x, x[:4])
    with pytest.raises(ValueError, match=r"one event shape, got x \(6, 2\) and y \(6,\)"):
        w2(x, x[:, 0])
    with pytest.raises(ValueError, match=r"x has 0 samples \(shape \(0, 2\)\)"):
        w2(x[:0], x[:0])
    bad = x.copy()
    bad[[1, 4], 0] = np.nan, np.inf
    for metric in (w2, energy_distance):
        with pytest.raises(ValueError, match=r"2 of 6 samples in y are not finite \(first rows: \[1, 4\]\)"):
            metric(x, bad)


def test_energy_distance_equals_a_double_loop(monkeypatch):
    monkeypatch.setattr("gft_jax.metrics.distances._BLOCK_ROWS", 4)  # so that the last block is a part
    x, y = normal(7, 2, 2), 2 + normal(5, 2, 2, seed=1)

    def mean_distance(a, b):
        pairs = [(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if a is not b or i != j]
        return np.mean([np.linalg.norm(p - q) for p, q in pairs])

    expected = 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)
    np.testing.assert_allclose(energy_distance(x, y), expected, rtol=1e-12)
    np.testing.assert_allclose(energy_distance(y, x), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"x has 1 samples \(shape \(1, 2, 2\)\), needs at least 2"):
        energy_distance(x[:1], y)


def test_energy_distance_of_gaussians_is_unbiased():
    """E|N(m, v)| is known; so is the bias of the V-statistic, which the same z-score refuses."""
    m, s, num_x, num_y, repeats = 1.0, 1.5, 30, 20, 1000

    def mean_abs(mean, sd):
        folded = sd * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * sd**2))
        return folded + mean * math.erf(mean / (sd * math.sqrt(2)))

    within_x, within_y = mean_abs(0, math.sqrt(2)), mean_abs(0, s * math.sqrt(2))
    expected = 2 * mean_abs(m, math.sqrt(1 + s**2)) - within_x - within_y
    x, y = normal(repeats, num_x), m + s * normal(repeats, num_y, seed=1)
    values = np.array([energy_distance(a, b) for a, b in zip(x, y, strict=True)])
    assert abs(z_score(values, expected)) < 3
    assert z_score(values, expected + within_x / num_x + within_y / num_y) < -5
    # The mean of one value, at equal laws, is 0: the floor needs no correction.
    same = np.array([energy_distance(a, b) for a, b in zip(x[:500], x[500:], strict=True)])
    assert abs(z_score(same, 0)) < 3
    assert same.min() < 0


def test_one_step_w2_takes_the_whole_step_at_time_zero():
    """v(t, x) = (1 + t) (shift - x) + label: a step from t = 0 ends at the shift plus the label, whatever x0."""

    def drift(params, t, x, cond=None):
        velocity = (1 + t)[:, None] * (params - x)
        return velocity if cond is None else velocity + cond[:, None]

    x0, shift = jnp.asarray(normal(20, 3), jnp.float32), jnp.array([1.0, -2.0, 0.5])
    data = jnp.broadcast_to(shift, (20, 3))
    assert one_step_w2(drift, shift, x0, data) < 1e-6
    label = 0.5 * jnp.ones(20)
    np.testing.assert_allclose(one_step_w2(drift, shift, x0, data, label), 0.5 * math.sqrt(3), rtol=1e-6)
    # Straight lines arrive; a drift that starts at half the speed is half of the way off.
    np.testing.assert_allclose(
        one_step_w2(lambda params, t, x, cond=None: (0.5 + t)[:, None] * params, shift, x0, x0 + shift),
        0.5 * np.linalg.norm(shift),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match=r"20 of 20 samples in x are not finite"):
        one_step_w2(drift, shift * jnp.nan, x0, data)


def test_one_step_w2_does_not_broadcast(without_hook):
    x0 = jnp.zeros((20, 3))
    with pytest.raises(ValueError, match=r"returned shape \(20, 1\) for x of shape \(20, 3\)"):
        one_step_w2(lambda params, t, x, cond=None: x[:, :1], None, x0, x0)
    with pytest.raises(
        ValueError, match=r"cond must have one row for each of the 20 samples, got shape \(1,\)"
    ):
        one_step_w2(lambda params, t, x, cond=None: x + cond[:, None], None, x0, x0, jnp.ones(1))


@pytest.mark.parametrize(
    "metric",
    [w2, energy_distance, partial(sliced_w2, jax.random.key(0)), prdc, frechet_distance],
    ids=["w2", "energy distance", "sliced W2", "prdc", "Frechet distance"],
)
def test_samples_whose_squares_overflow_are_refused_with_their_size(metric):
    x, y = normal(8, 2), normal(8, 2, seed=1)
    with pytest.raises(
        NotFinite, match=r"x has entries as large as .*e\+160; metrics square them and take at most 1e"
    ):
        metric(1e160 * x, y)
    large = np.ravel(metric(1e148 * x, 1e148 * y))
    assert np.all(np.isfinite(large))
    power = {frechet_distance: 2, prdc: 0}.get(metric, 1)
    np.testing.assert_allclose(large / 1e148**power, np.ravel(metric(x, y)), rtol=1e-9)


def test_complex_samples_are_refused():
    with pytest.raises(ValueError, match=r"y must be real, got complex numbers \(shape \(6, 2\)\)"):
        w2(normal(6, 2), normal(6, 2) + 1j)


def test_sliced_w2_in_one_dimension_is_w2():
    x, y = normal(60), 1 + 3 * normal(60, seed=1)
    key = jax.random.key(0)
    np.testing.assert_allclose(sliced_w2(key, x, y, num_projections=3), w2(x, y), rtol=1e-12)
    # Unequal numbers: four samples of weight 1/4 and six of weight 1/6 are twelve and twelve.
    few, more = x[:4], y[:6]
    expected = w2(np.repeat(few, 3), np.repeat(more, 2))
    np.testing.assert_allclose(sliced_w2(key, few, more, num_projections=3), expected, rtol=1e-12)
    np.testing.assert_allclose(sliced_w2(key, more, few, num_projections=3), expected, rtol=1e-12)


def test_sliced_w2_of_a_translation_is_its_length_over_the_root_of_the_dimension():
    d, num_projections = 6, 3000
    shift = normal(2, 3, seed=1)
    x = normal(8, 2, 3)
    found = sliced_w2(jax.random.key(0), x[::-1], x + shift, num_projections=num_projections)
    # (u . c)^2 has mean |c|^2 / d and variance 2 |c|^4 (d - 1) / (d^2 (d + 2)) over unit vectors u.
    square = np.sum(shift**2)
    error = square * np.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / num_projections)
    assert abs(found**2 - square / d) < 3 * error
    assert abs(found**2 - square / (d - 1)) > 3 * error
    assert sliced_w2(jax.random.key(0), x, x[::-1]) < 1e-12


def test_sliced_w2_is_a_function_of_its_key_in_bounded_memory(monkeypatch):
    x, y = normal(20, 3), 1 + 2 * normal(15, 3, seed=1)
    once = sliced_w2(jax.random.key(0), x, y, num_projections=20)
    assert once != sliced_w2(jax.random.key(1), x, y, num_projections=20)
    monkeypatch.setattr("gft_jax.metrics.distances._BLOCK_DIRECTIONS", 7)  # so that the last block is a part
    np.testing.assert_allclose(sliced_w2(jax.random.key(0), x, y, num_projections=20), once, rtol=1e-12)


def test_sliced_w2_of_equal_laws_falls_with_the_root_of_the_number_whatever_the_dimension():
    def mean_floor(num):
        sets = normal(20, 2, num, 20)
        return np.mean([sliced_w2(jax.random.key(0), x, y, num_projections=50) for x, y in sets])

    assert 1.7 < mean_floor(50) / mean_floor(200) < 2.3


def test_sliced_w2_checks_what_it_is_given():
    x, key = normal(6, 2), jax.random.key(0)
    with pytest.raises(ValueError, match=r"num_projections must be >= 1, got 0"):
        sliced_w2(key, x, x, num_projections=0)
    with pytest.raises(ValueError, match=r"one event shape, got x \(6, 2\) and y \(6, 1\)"):
        sliced_w2(key, x, x[:, :1])
    with pytest.raises(ValueError, match=r"y has 0 samples"):
        sliced_w2(key, x, x[:0])
    with pytest.raises(ValueError, match=r"1 of 6 samples in x are not finite \(first rows: \[0\]\)"):
        sliced_w2(key, np.where(np.arange(6)[:, None] == 0, np.inf, x), x)
