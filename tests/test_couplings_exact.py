"""The exact coupling against closed forms and all permutations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from ends import brute_cost, two_ends

from gft_jax.couplings import exact, independent
from gft_jax.couplings.base import flat_ends, squared_distances

KEY = jax.random.key(7)


def test_exact_in_one_dimension_pairs_the_sorted():
    x0, x1 = two_ends(rows=50, event=())
    pairing = exact()(KEY, x0, x1)
    np.testing.assert_array_equal(np.sort(x0), x0[pairing.source_index][np.argsort(x1)])


def test_exact_is_the_best_of_all_permutations():
    for seed in range(3):
        x0, x1 = two_ends(rows=6, event=(2,), seed=seed)
        cost = brute_cost(x0, x1)
        best = min(cost[list(s), range(6)].mean() for s in itertools.permutations(range(6)))
        np.testing.assert_allclose(exact()(KEY, x0, x1).cost, best, rtol=1e-5)


def test_forbidden_pairs_are_as_few_as_can_be_and_then_the_cost_is_least():
    rng = np.random.default_rng(0)
    for seed in range(3):
        x0, x1 = two_ends(rows=6, event=(2,), seed=seed)
        penalty = np.where(rng.random((6, 6)) < 0.75, np.inf, rng.random((6, 6)))
        cost = brute_cost(x0, x1)
        scaled = cost / cost.mean()

        def value(s, penalty=penalty, scaled=scaled):
            chosen = penalty[list(s), range(6)]
            allowed = np.isfinite(chosen)
            return 6 - allowed.sum(), (scaled[list(s), range(6)] + chosen)[allowed].sum()

        best = min(itertools.permutations(range(6)), key=value)
        assert value(best)[0] > 0 or seed  # the first seed cannot do without
        for couple in (exact(), jax.jit(exact())):
            found = couple(KEY, x0, x1, penalty=jnp.asarray(penalty, jnp.float32)).source_index
            np.testing.assert_allclose(value(np.asarray(found)), value(best), rtol=1e-5)
    # One forbidden pair less, though every allowed one costs more than before.
    penalty = jnp.array([[5, 0, np.inf], [np.inf, 5, 0], [np.inf, np.inf, 5]])
    found = exact()(KEY, jnp.zeros((3, 1)), jnp.zeros((3, 1)), penalty=penalty)
    np.testing.assert_array_equal(found.source_index, np.arange(3))


def test_exact_approaches_the_monge_map_between_gaussians():
    """N(0, 1) to N(m, s^2): W2^2 = m^2 + (1 - s)^2, and the independent coupling costs m^2 + 1 + s^2."""
    m, s, rows, repeats = 2.0, 0.5, 128, 50
    rng = np.random.default_rng(0)
    x0 = rng.standard_normal((repeats, rows), np.float32)
    x1 = m + s * rng.standard_normal((repeats, rows), np.float32)
    keys = jax.random.split(KEY, repeats)

    def z_score(coupling, *expected):
        costs = np.array([coupling(*ends).cost for ends in zip(keys, x0, x1, strict=True)], np.float64)
        return (costs.mean() - np.array(expected)) / (costs.std(ddof=1) / np.sqrt(repeats))

    # The squared difference of the two sample means makes the optimum of a batch too large by (1 + s^2) / rows.
    optimal, product = m**2 + (1 - s) ** 2 + (1 + s**2) / rows, m**2 + 1 + s**2
    right, wrong = z_score(exact(), optimal, product)
    assert abs(right) < 3
    assert wrong < -10
    right, wrong = z_score(independent(), product, optimal)
    assert abs(right) < 3
    assert wrong > 10


def test_integers_and_half_precision_are_compared_in_single():
    x0, x1 = np.array([[200], [1]], np.uint8), np.array([[0], [255]], np.uint8)
    pairing = exact()(KEY, x0, x1)
    np.testing.assert_array_equal(pairing.source_index, [1, 0])
    assert pairing.cost == (1**2 + 55**2) / 2
    half = jnp.array([[1.0], [256.0]], jnp.bfloat16)
    assert exact()(KEY, half, half + 2).cost.dtype == jnp.float32


def test_double_precision_gives_more_digits(x64):
    x0, x1 = two_ends(dtype=np.float64)
    pairing = exact()(KEY, x0, x1)
    pairs = brute_cost(x0, x1)[pairing.source_index, pairing.target_index]
    np.testing.assert_allclose(pairing.cost, pairs.mean(), rtol=1e-14)


def test_distances_far_from_the_origin_keep_their_digits():
    """Centred first, |a|^2 + |b|^2 - 2 a.b still has them."""
    x0, x1 = (np.round(x * 64) / 64 for x in two_ends(event=(6,)))  # so that the shift is exact
    far0, far1 = x0 + 4096, x1 + 4096
    cost = brute_cost(x0, x1)
    np.testing.assert_allclose(
        squared_distances(*flat_ends(far0, far1)), cost, rtol=1e-4, atol=1e-4 * cost.mean()
    )
    np.testing.assert_array_equal(exact()(KEY, far0, far1).source_index, exact()(KEY, x0, x1).source_index)
    naive = np.sum(far0**2, 1)[:, None] + np.sum(far1**2, 1)[None] - 2 * far0 @ far1.T
    assert naive.dtype == np.float32
    assert np.abs(naive - cost).max() > 1
