import math

import numpy as np
import pytest
from samples import normal, z_score

from gft_jax.metrics import cubic_kernel, gaussian_kernel, kernel_distance, median_distance, squared_mmd


def test_squared_mmd_equals_a_double_loop(monkeypatch):
    monkeypatch.setattr("gft_jax.metrics.kernels._BLOCK_ROWS", 4)  # so that the last block is a part
    x, y = normal(7, 2, 2), 2 + normal(5, 2, 2, seed=1)

    def similarity(p, q):
        square = np.sum((p - q) ** 2)
        return (math.exp(-square / 2) + math.exp(-square / 18)) / 2

    def mean_similarity(a, b):
        return np.mean(
            [similarity(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if a is not b or i != j]
        )

    expected = mean_similarity(x, x) + mean_similarity(y, y) - 2 * mean_similarity(x, y)
    np.testing.assert_allclose(squared_mmd(x, y, gaussian_kernel(1.0, 3.0)), expected, rtol=1e-12)
    np.testing.assert_allclose(squared_mmd(y, x, gaussian_kernel(3.0, 1.0)), expected, rtol=1e-12)


def test_squared_mmd_of_gaussians_is_unbiased():
    """Against the closed form; the bias of the V-statistic, (1 - E k) / num, is refused by the same z-score."""
    m, s, h, num_x, num_y, repeats = 1.0, 1.5, 0.8, 20, 15, 1000

    def mean_kernel(mean, variance):
        return h / math.sqrt(h**2 + variance) * math.exp(-(mean**2) / (2 * (h**2 + variance)))

    within_x, within_y = mean_kernel(0, 2), mean_kernel(0, 2 * s**2)
    expected = within_x + within_y - 2 * mean_kernel(m, 1 + s**2)
    x, y = normal(repeats, num_x), m + s * normal(repeats, num_y, seed=1)
    kernel = gaussian_kernel(h)
    values = [squared_mmd(a, b, kernel) for a, b in zip(x, y, strict=True)]
    assert abs(z_score(values, expected)) < 3
    assert z_score(values, expected + (1 - within_x) / num_x + (1 - within_y) / num_y) < -5
    same = np.array([squared_mmd(a, b, kernel) for a, b in zip(x[:500], x[500:], strict=True)])
    assert abs(z_score(same, 0)) < 3
    assert same.min() < 0


def test_kernel_distance_compares_three_moments():
    """In one dimension ``(xy + 1)^3 = 1 + 3 xy + 3 x^2 y^2 + x^3 y^3``: squared differences of the raw moments."""
    m, s, repeats = 0.5, 1.2, 1000
    moments = np.array([m, m**2 + s**2, m**3 + 3 * m * s**2])
    differences = (moments - np.array([0, 1, 0])) ** 2
    x, y = m + s * normal(repeats, 30), normal(repeats, 20, seed=1)
    values = [kernel_distance(a, b) for a, b in zip(x, y, strict=True)]
    assert abs(z_score(values, differences @ [3, 3, 1])) < 3
    assert abs(z_score(values, differences @ [3, 3, 0])) > 5
    same = np.array([kernel_distance(a, b) for a, b in zip(y[:500], y[500:], strict=True)])
    assert abs(z_score(same, 0)) < 3
    assert same.min() < 0


def test_kernel_distance_divides_by_the_width():
    a, b = np.array([[1.0, 2.0]]), np.array([[3.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(cubic_kernel(a, b), [[(4 / 2 + 1) ** 3, 1]])


def test_the_default_bandwidth_is_the_median_distance_of_the_real_samples():
    x, y = normal(10, 3), normal(7, 3, seed=1)
    distances = [np.linalg.norm(a - b) for i, a in enumerate(y) for b in y[:i]]
    np.testing.assert_allclose(median_distance(y), np.median(distances), rtol=1e-12)
    for samples in (x, 100 * x):
        given = squared_mmd(samples, y, gaussian_kernel(median_distance(y)))
        assert squared_mmd(samples, y) == given


def test_kernel_metrics_check_what_they_are_given():
    x = normal(6, 2)
    for metric in (squared_mmd, kernel_distance):
        with pytest.raises(ValueError, match=r"one event shape, got x \(6, 2\) and y \(6, 1\)"):
            metric(x, x[:, :1])
        with pytest.raises(ValueError, match=r"y has 1 samples \(shape \(1, 2\)\), needs at least 2"):
            metric(x, x[:1])
        with pytest.raises(ValueError, match=r"1 of 6 samples in y are not finite \(first rows: \[5\]\)"):
            metric(x, np.where(np.arange(6)[:, None] == 5, np.nan, x))
    for bandwidths in ((), (1.0, 0.0), (math.inf,)):
        with pytest.raises(ValueError, match=r"bandwidths must be one or more positive, finite numbers"):
            gaussian_kernel(*bandwidths)
    with pytest.raises(ValueError, match=r"at least half of the pairs of the 6 samples in y coincide"):
        squared_mmd(x, np.repeat(x[:1], 6, axis=0))
    with pytest.raises(ValueError, match=r"one value for each pair of rows, shape \(6, 6\), got \(6,\)"):
        squared_mmd(x, x, lambda a, b: np.sum(a * b, axis=1))
    with pytest.raises(ValueError, match=r"36 of 36 values that are not finite"):
        squared_mmd(x, x, lambda a, b: np.full((len(a), len(b)), np.nan))
