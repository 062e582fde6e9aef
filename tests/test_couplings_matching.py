"""Couplings of ends that both have conditions, which are to agree."""

import jax
import numpy as np
import scipy.optimize
from ends import brute_cost, two_classes, two_ends

from gft_jax.couplings import exact, matching_conditions, matching_labels, sinkhorn

KEY = jax.random.key(7)


def test_matching_labels_pairs_as_many_as_the_counts_allow():
    x0, x1, label = two_classes(8)
    source_label = np.random.default_rng(1).integers(0, 2, len(label))
    pairing = matching_labels(exact())(KEY, x0, x1, label, source_label)
    agree = (source_label[pairing.source_index] == label).sum()
    assert agree == np.minimum(np.bincount(label), np.bincount(source_label)).sum() < len(label)
    assert pairing.converged
    plain = exact()(KEY, x0, x1)
    assert (source_label[plain.source_index] == label).sum() < agree
    # No plan with uniform marginals is without mismatch: said, and mended by a finite weight.
    assert not matching_labels(sinkhorn())(KEY, x0, x1, label, source_label).converged
    assert matching_labels(sinkhorn(), weight=2.0)(KEY, x0, x1, label, source_label).converged


def test_matching_conditions_is_transport_of_both_together():
    """Against the assignment of least total cost, by the matrix computed here."""
    x0, x1 = two_ends(rows=20, event=(2,))
    conds = {"a": x1[:, 0] ** 2, "b": x1}
    source_conds = {"a": x0[:, 1], "b": x0 + 3}
    pairing = matching_conditions(exact(), weight=2.0)(KEY, x0, x1, conds, source_conds)
    cost = brute_cost(x0, x1)
    apart = brute_cost(source_conds["a"], conds["a"]) + brute_cost(source_conds["b"], conds["b"])
    total = cost / cost.mean() + 2 * apart / apart.mean()
    source, target = scipy.optimize.linear_sum_assignment(total)
    np.testing.assert_array_equal(np.asarray(pairing.source_index)[target], source)
    assert (exact()(KEY, x0, x1).source_index != pairing.source_index).any()
