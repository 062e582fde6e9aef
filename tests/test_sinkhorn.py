import numpy as np
import pytest
from samples import normal
from scipy.special import logsumexp

from gft_jax.metrics import sinkhorn_divergence, w2

X, Y = normal(24, 2), np.array([1.5, 0.0]) + 0.5 * normal(24, 2, seed=1)


def transport_cost(x, y, epsilon):
    """Entropic transport cost in double precision, by Sinkhorn's iteration in the log domain."""
    cost = np.sum((x[:, None] - y[None]) ** 2, axis=-1)
    g = np.zeros(len(y))
    for _ in range(200):
        f = -epsilon * logsumexp((g - cost) / epsilon, axis=1, b=1 / len(y))
        g = -epsilon * logsumexp((f[:, None] - cost) / epsilon, axis=0, b=1 / len(x))
    return f.mean() + g.mean()


def reference(x, y, epsilon):
    return transport_cost(x, y, epsilon) - (transport_cost(x, x, epsilon) + transport_cost(y, y, epsilon)) / 2


@pytest.mark.parametrize("y", [Y, Y[:16]], ids=["equal numbers", "unequal numbers"])
def test_sinkhorn_divergence_agrees_with_double_precision(y):
    found = sinkhorn_divergence(X, y)
    mean_cost = np.mean(np.sum((X[:, None] - y[None]) ** 2, axis=-1))
    np.testing.assert_allclose(found.epsilon, 0.05 * mean_cost, rtol=1e-12)
    assert found.converged
    assert found.marginal_error < 2e-3
    np.testing.assert_allclose(found.value, reference(X, y, found.epsilon), rtol=1e-5)
    assert abs(found.value - reference(X, y, 2 * found.epsilon)) > 1e-3 * found.value
    absolute = sinkhorn_divergence(X, y, absolute_epsilon=found.epsilon)
    np.testing.assert_allclose(absolute, found, rtol=1e-6)


def test_sinkhorn_divergence_of_a_translation_is_the_squared_length_of_the_shift():
    shift = np.array([3.0, -1.0])
    shuffled = np.random.default_rng(2).permutation(X)
    for epsilon in (0.02, 1.0):
        found = sinkhorn_divergence(shuffled + shift, X, epsilon=epsilon)
        np.testing.assert_allclose(found.value, 10, rtol=1e-4)
    assert abs(sinkhorn_divergence(shuffled, X).value) < 1e-5


def test_sinkhorn_divergence_lies_between_w2_and_the_distance_of_the_means():
    means = np.sum((X.mean(axis=0) - Y.mean(axis=0)) ** 2)
    sharp, default, blunt = (sinkhorn_divergence(X, Y, epsilon=e).value for e in (5e-3, 0.05, 100.0))
    np.testing.assert_allclose(sharp, w2(X, Y) ** 2, rtol=5e-3)
    np.testing.assert_allclose(blunt, means, rtol=5e-3)
    assert means * 1.05 < default < 0.99 * w2(X, Y) ** 2


def test_sinkhorn_divergence_keeps_its_precision_at_any_place_and_scale():
    # In float32, 1e4 leaves three digits behind the point, and the square of 1e25 is infinite.
    value = sinkhorn_divergence(X, Y).value
    np.testing.assert_allclose(sinkhorn_divergence(X + 1e4, Y + 1e4).value, value, rtol=1e-5)
    np.testing.assert_allclose(sinkhorn_divergence(1e25 * X, 1e25 * Y).value, 1e50 * value, rtol=1e-5)


def test_sinkhorn_divergence_says_where_it_has_not_converged():
    found = sinkhorn_divergence(X, Y, epsilon=1e-4)
    assert not found.converged
    assert found.marginal_error > 0.01


def test_sinkhorn_divergence_of_points_that_coincide():
    found = sinkhorn_divergence(0 * X, 0 * X)
    assert found.converged
    assert abs(found.value) < 1e-6


def test_sinkhorn_divergence_checks_what_it_is_given():
    with pytest.raises(ValueError, match=r"not both: got epsilon=0.1 and absolute_epsilon=1.0"):
        sinkhorn_divergence(X, Y, epsilon=0.1, absolute_epsilon=1.0)
    with pytest.raises(ValueError, match=r"absolute_epsilon must be positive and finite, got 0.0"):
        sinkhorn_divergence(X, Y, absolute_epsilon=0.0)
    with pytest.raises(ValueError, match=r"threshold must be positive and finite, got nan"):
        sinkhorn_divergence(X, Y, threshold=float("nan"))
    with pytest.raises(ValueError, match=r"max_iterations must be >= 1, got 0"):
        sinkhorn_divergence(X, Y, max_iterations=0)
    with pytest.raises(ValueError, match=r"one event shape, got x \(24, 2\) and y \(24, 1\)"):
        sinkhorn_divergence(X, Y[:, :1])
    with pytest.raises(ValueError, match=r"2 of 24 samples in x are not finite"):
        sinkhorn_divergence(np.where(np.arange(24)[:, None] < 2, np.nan, X), Y)
    with pytest.raises(ValueError, match=r"epsilon 4.59168e-50 is too small .* of 4.59168 in float32"):
        sinkhorn_divergence(X, Y, epsilon=1e-50)
