import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.metrics import (
    energy_distance,
    instantaneous_variance,
    mean_pairwise_distance,
    one_step_w2,
    path_length,
    spearman,
    velocity_distance,
    w2,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# Distances


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

    def z_score(expected):
        return (values.mean() - expected) / (values.std(ddof=1) / math.sqrt(repeats))

    assert abs(z_score(expected)) < 3
    assert z_score(expected + within_x / num_x + within_y / num_y) < -5
    # The mean of one value, at equal laws, is 0: the floor needs no correction.
    same = np.array([energy_distance(a, b) for a, b in zip(x[:500], x[500:], strict=True)])
    assert abs(same.mean()) < 3 * same.std(ddof=1) / math.sqrt(500)
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


# Path geometry


def test_path_length_of_straight_lines_is_the_distance_of_their_ends():
    times = np.linspace(0, 1, 6, dtype=np.float32) ** 2
    for event in ((), (4,), (2, 3), (2, 2, 3)):
        start, end = normal(2, 5, *event).astype(np.float32)
        trajectory = start + times.reshape(-1, *[1] * start.ndim) * (end - start)
        expected = np.linalg.norm((end - start).reshape(5, -1), axis=1)
        lengths = path_length(trajectory)
        assert lengths.dtype == jnp.float32
        np.testing.assert_allclose(lengths, expected, rtol=2e-6)


def test_path_length_of_a_circle(x64):
    num_steps, radius = 100, np.array([1.0, 2.5])
    angle = np.linspace(0, 2 * np.pi, num_steps + 1)[:, None]
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    lengths = jax.jit(path_length)(circle)
    assert lengths.dtype == jnp.float64
    np.testing.assert_allclose(lengths, radius * num_steps * 2 * np.sin(np.pi / num_steps), rtol=1e-12)
    # The polygon is shorter than the circle by pi^2 / (6 num_steps^2).
    np.testing.assert_allclose(1 - lengths / (2 * np.pi * radius), np.pi**2 / 6 / num_steps**2, rtol=1e-3)


def test_path_length_keeps_samples_apart():
    trajectory = np.zeros((3, 3, 2), np.float32)
    trajectory[1, 1] = 3, 4  # there and back
    trajectory[2, 2, 0] = np.nan
    np.testing.assert_array_equal(path_length(trajectory), [0, 10, np.nan])
    with pytest.raises(ValueError, match=r"at least two states, start included, got shape \(1, 3, 2\)"):
        path_length(trajectory[:1])


# Stability


def test_spearman_of_monotone_curves_and_ties():
    steps = np.array([0, 50, 100, 150, 200])
    np.testing.assert_allclose(spearman(steps, np.exp(-steps / 30)), -1, rtol=1e-12)
    np.testing.assert_allclose(spearman(steps, [1, 2, 3, 5, 80]), 1, rtol=1e-12)
    # One swap of neighbours: 1 - 6 sum d^2 / (n (n^2 - 1)) = 1 - 12 / 120.
    np.testing.assert_allclose(spearman(steps, [1, 3, 2, 4, 5]), 0.9, rtol=1e-12)
    # Ranks 1.5, 1.5, 3, 4, 5 by hand: covariance 9.5, sums of squares 10 and 9.5.
    np.testing.assert_allclose(spearman(steps, [1, 1, 2, 3, 4]), 9.5 / math.sqrt(95), rtol=1e-12)
    assert math.isnan(spearman(steps, [2.0] * 5))


def test_spearman_does_not_depend_on_the_order_of_the_points():
    steps, values = np.arange(10), normal(10)
    order = np.random.default_rng(1).permutation(10)
    np.testing.assert_allclose(spearman(steps[order], values[order]), spearman(steps, values), rtol=1e-12)


def test_instantaneous_variance():
    # Increments in eighths are exact, and so is the zero.
    assert instantaneous_variance(3 - np.arange(20) / 8) == 0
    # Increments 1, -3, 5 of mean 1: (0 + 16 + 16) / 3.
    np.testing.assert_allclose(instantaneous_variance([2, 3, 0, 5]), 32 / 3, rtol=1e-12)
    # A zigzag of height h around any line: increments +-h of slope s.
    zigzag = np.arange(21) * 0.1 + 0.5 * (np.arange(21) % 2)
    np.testing.assert_allclose(instantaneous_variance(zigzag), 0.25, rtol=1e-12)


def test_instantaneous_variance_of_noisy_values_is_twice_their_variance():
    repeats, num, sd = 400, 50, 0.3
    values = np.array([instantaneous_variance(curve) for curve in sd * normal(repeats, num) - np.arange(num)])
    # The mean of the increments, of variance 2 sd^2 / (num - 1)^2, has been subtracted.
    expected = 2 * sd**2 * (1 - 1 / (num - 1) ** 2)

    def z_score(expected):
        return (values.mean() - expected) / (values.std(ddof=1) / math.sqrt(repeats))

    assert abs(z_score(expected)) < 3
    assert z_score(sd**2) > 20


def test_curves_are_checked():
    for metric in (instantaneous_variance, lambda values: spearman(range(len(values)), values)):
        with pytest.raises(
            ValueError, match=r"values has 2 entries that are not finite, at positions \[1, 3\]"
        ):
            metric([0.0, math.nan, 1.0, -math.inf])
        with pytest.raises(ValueError, match=r"num >= 3, got shape \(2,\)"):
            metric([0.0, 1.0])
    with pytest.raises(ValueError, match=r"got shape \(2, 3\)"):
        instantaneous_variance(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(4,\)"):
        spearman([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"all 3 steps are 100"):
        spearman([100, 100, 100], [1, 2, 3])


def test_mean_pairwise_distance_leaves_out_the_zero_distances_of_samples_to_themselves():
    samples = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert mean_pairwise_distance(samples) == pytest.approx((5 + 0 + 5) / 3)
    images = np.random.default_rng(0).normal(size=(2000, 2, 2))
    expected = 2 * math.gamma(2.5) / math.gamma(2)  # E|x - y| of normal vectors in four dimensions
    assert mean_pairwise_distance(images) == pytest.approx(expected, rel=0.01)
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise_distance(samples[:1])


def test_velocity_distance_is_the_root_of_the_mean_squared_norm(without_hook):
    def drift(params, t, x, cond=None):
        return x + params * t[:, None, None]

    x, t = jnp.ones((4, 2, 3)), jnp.arange(4.0)
    found = velocity_distance(drift, 2.0, x, t, x)
    assert float(found) == pytest.approx(np.sqrt(6 * np.mean((2.0 * np.arange(4)) ** 2)))
    assert float(velocity_distance(drift, 0.0, x, t, x)) == 0.0
    with pytest.raises(ValueError, match="one shape"):
        velocity_distance(drift, 0.0, x[:, :1], t, x)
