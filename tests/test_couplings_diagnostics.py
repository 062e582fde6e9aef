"""Diagnostics of pairings against what is counted here."""

import functools

import jax
import numpy as np
from ends import brute_cost, two_ends

from gft_jax.couplings import apply, diagnose, exact, independent, sinkhorn, unbalanced

KEY = jax.random.key(7)
blurred = functools.cache(lambda: sinkhorn(100.0))


def test_costs_lie_between_the_optimal_and_the_independent_one():
    x0, x1 = two_ends(rows=40, event=(2,))
    cost = brute_cost(x0, x1)
    optimal = diagnose(exact()(KEY, x0, x1), x0, x1)
    np.testing.assert_allclose(optimal.independent_cost, cost.mean(), rtol=1e-5)
    assert optimal.cost == optimal.optimal_cost
    assert optimal.excess == 0
    assert optimal.entropy == 0
    entropic = sinkhorn(0.2)(KEY, x0, x1)
    found = diagnose(entropic, x0, x1)
    np.testing.assert_allclose(
        found.excess, (entropic.cost - optimal.cost) / (cost.mean() - optimal.cost), rtol=1e-4
    )
    assert 0.05 < found.excess < 0.95
    assert 0 < found.entropy < np.log(40)
    loose = blurred()(KEY, x0, x1)
    np.testing.assert_allclose(diagnose(loose, x0, x1).excess, 1, atol=1e-2)
    np.testing.assert_allclose(loose.entropy, np.log(40), rtol=1e-3)
    inside = jax.jit(diagnose)(entropic, x0, x1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), inside, found)
    # Another coupling may stand for the optimum.
    assert diagnose(entropic, x0, x1, optimal=lambda *a: entropic).excess == 0


def test_rows_that_are_used_are_counted():
    x0, x1 = two_ends(rows=40, event=(2,))
    drawn = blurred()(KEY, x0, x1)
    moved = apply(drawn, x0, x1)[0]
    found = diagnose(drawn, x0, x1)
    np.testing.assert_allclose(found.distinct_sources, len(np.unique(moved, axis=0)) / 40, rtol=1e-6)
    assert found.distinct_sources < 0.9
    assert found.distinct_targets == found.effective_rows == 1
    chosen = drawn._replace(target_index=np.arange(40, dtype=np.int32) // 2)
    assert diagnose(chosen, x0, x1).distinct_targets == 0.5
    assert diagnose(independent()(KEY, x0, x1), x0, x1).distinct_sources == 1


def test_weights_count_as_fewer_rows_and_numbers_are_passed_on():
    x0, x1 = two_ends(rows=40, event=(2,))
    x1[:10] += 1000
    pairing = unbalanced(0.1)(KEY, x0, x1)
    found = diagnose(pairing, x0, x1)
    weight = np.asarray(pairing.weight)
    np.testing.assert_allclose(found.effective_rows, weight.sum() ** 2 / (40 * (weight**2).sum()), rtol=1e-5)
    np.testing.assert_allclose(found.effective_rows, 0.75, rtol=0.02)
    assert found.excess < 0
    assert (found.marginal_error, found.converged) == (pairing.marginal_error, pairing.converged)


def test_where_all_pairings_cost_the_same_there_is_no_excess():
    ends = np.ones((6, 2), np.float32)
    found = diagnose(independent()(KEY, ends, ends), ends, ends)
    assert found.excess == found.cost == found.independent_cost == 0
