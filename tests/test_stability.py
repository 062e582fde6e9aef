import math

import numpy as np
import pytest
from samples import normal, z_score

from gft_jax.metrics import instantaneous_variance, spearman


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
    assert abs(z_score(values, expected)) < 3
    assert z_score(values, sd**2) > 20


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
