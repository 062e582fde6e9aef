"""Couplings that respect conditions: what is independent of the condition stays so, where plain transport skews it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from ends import two_classes, two_ends
from samples import z_score

from gft_jax.couplings import (
    exact,
    independent,
    matching_labels,
    one_to_one,
    respecting_conditions,
    respecting_labels,
    sinkhorn,
    unbalanced,
)

KEY = jax.random.key(7)


@pytest.mark.parametrize(
    ("inner", "swapped"), [(exact, False), (sinkhorn, True)], ids=["labels of x1", "modes of x0"]
)
def test_the_other_end_does_not_know_the_label(inner, swapped):
    """Mean and variance of x0 given the label of x1, and of x1 given the mode of x0; plain transport shifts the mean.

    The rows come sorted, so that those of one number are not independent as they stand.
    """
    batches = [two_classes(seed) for seed in range(120)]
    batches = [(np.sort(x0), x1[np.argsort(label)], np.sort(label)) for x0, x1, label in batches]
    x0, x1, label = (jnp.asarray(np.stack(leaves)) for leaves in zip(*batches, strict=True))
    keys = jax.random.split(KEY, len(batches))
    ends = (x1, x0, None, label) if swapped else (x0, x1, label, None)
    optimal = inner()

    def z_scores(coupling):
        axes = tuple(None if leaf is None else 0 for leaf in ends)
        index = jax.jit(jax.vmap(lambda *a: coupling(*a).source_index, (0, *axes)))(keys, *ends)
        label_of_pair = jnp.take_along_axis(label, index, axis=1) if swapped else label
        free = x0 if swapped else jnp.take_along_axis(x0, index, axis=1)
        sign = np.asarray(2 * label_of_pair - 1)
        return z_score((sign * free).mean(axis=1), 0), z_score((sign * free**2).mean(axis=1), 0)

    respecting, plain = z_scores(respecting_labels(optimal)), z_scores(lambda *a: optimal(*a))
    assert max(map(abs, respecting)) < 4
    assert plain[0] > 20


def test_within_each_class_the_pairs_are_optimal():
    """In one dimension: sorted in each class. So its cost is less than that of independent pairs of a class."""
    x0, x1, label = two_classes(3)
    pairing = respecting_labels(exact())(KEY, x0, x1, label)
    moved = x0[pairing.source_index]
    for value in (0, 1):
        inside = label == value
        np.testing.assert_array_equal(np.argsort(moved[inside]), np.argsort(x1[inside]))
    np.testing.assert_allclose(pairing.cost, ((moved - x1) ** 2).mean(), rtol=1e-5)  # without the penalty
    plain, random = exact()(KEY, x0, x1), independent()(KEY, x0, x1)
    assert plain.cost < pairing.cost < random.cost


def test_pairs_of_each_inner_coupling_stay_in_the_class_that_was_drawn():
    """One to one with the exact coupling: each class has the same random subset of x0, whatever the inner coupling."""
    x0, x1, label = two_classes(4)
    subset = [
        set(np.asarray(respecting_labels(exact())(KEY, x0, x1, label).source_index)[label == v].tolist())
        for v in (0, 1)
    ]
    assert not subset[0] & subset[1]
    for inner in (sinkhorn(rounding=one_to_one), unbalanced()):
        pairing = respecting_labels(inner)(KEY, x0, x1, label)
        assert pairing.converged
        for v in (0, 1):
            assert set(np.asarray(pairing.source_index)[label == v].tolist()) <= subset[v]


def test_labels_of_any_integer_dtype_and_combinations_of_them():
    x0, x1, label = two_classes(5)
    expected = respecting_labels(exact())(KEY, x0, x1, label)
    for dtype in (bool, np.int8, np.uint32):
        found = respecting_labels(exact())(KEY, x0, x1, label.astype(dtype))
        np.testing.assert_array_equal(found.source_index, expected.source_index)
    bits = np.stack([label, np.zeros_like(label)], axis=1)
    found = respecting_labels(exact())(KEY, x0, x1, {"bits": bits})
    np.testing.assert_array_equal(found.source_index, expected.source_index)
    other = np.random.default_rng(0).integers(0, 2, len(label))
    pair = respecting_labels(exact())(KEY, x0, x1, {"a": label, "b": other})
    combined = respecting_labels(exact())(KEY, x0, x1, 2 * label + other)
    np.testing.assert_array_equal(pair.source_index, combined.source_index)
    assert pair.cost > expected.cost


def test_one_of_several_conditions_is_selected_and_two_couplings_compose():
    x0, x1, label = two_classes(6)
    number = np.random.default_rng(0).normal(size=len(label)).astype(np.float32)
    cond = {"label": label, "number": number}
    labelled = respecting_labels(exact(), select=lambda cond, source_cond: (cond["label"], None))
    expected = respecting_labels(exact())(KEY, x0, x1, label)
    np.testing.assert_array_equal(labelled(KEY, x0, x1, cond, number).source_index, expected.source_index)
    near = respecting_conditions(exact(), weight=1e4, select=lambda cond, source_cond: (cond["number"], None))
    both = respecting_labels(near, select=lambda cond, source_cond: (cond["label"], None))
    # With so large a weight all rows stay with their random partners, whose labels agree: if both drew the same ones.
    np.testing.assert_array_equal(both(KEY, x0, x1, cond).source_index, near(KEY, x0, x1, cond).source_index)
    assert (near(KEY, x0, x1, cond).source_index != expected.source_index).any()


def test_a_row_bears_the_conditions_of_one_partner_at_both_ends():
    """Where each row has a label of its own, no row leaves its random partner, whichever end the labels are of."""
    x0, x1 = two_ends()
    number = np.arange(12)
    alone = respecting_labels(exact())(KEY, x0, x1, number)
    for conds in ((None, number), (number, number)):
        pairing = respecting_labels(exact())(KEY, x0, x1, *conds)
        np.testing.assert_array_equal(pairing.source_index, alone.source_index)
    assert (alone.source_index != exact()(KEY, x0, x1).source_index).any()


def test_a_finite_weight_goes_from_the_plain_coupling_to_the_class():
    x0, x1, label = two_classes(7)
    costs = [respecting_labels(exact(), weight=w)(KEY, x0, x1, label).cost for w in (0, 0.8, 100, np.inf)]
    np.testing.assert_allclose(costs[0], exact()(KEY, x0, x1).cost, rtol=1e-5)
    assert costs[0] < costs[1] < costs[2]
    np.testing.assert_allclose(costs[2], costs[3], rtol=1e-5)


def test_the_skew_that_is_left_by_continuous_conditions_has_its_closed_form():
    """x0 and c standard normal, x1 = c + s noise: the Monge map of (x0, c') to (x1, c) gives cov(x0, c)."""
    s, rows, repeats, weights = 0.5, 64, 150, (0.0, 1.0, 10.0)
    rng = np.random.default_rng(0)
    x0, cond, noise = rng.standard_normal((3, repeats, rows)).astype(np.float32)
    x1 = cond + np.float32(s) * noise
    keys = jax.random.split(KEY, repeats)

    def closed_form(weight):
        scale = np.sqrt(weight * (2 + s**2) / 2)  # of c, in the unit of x: m is 2 + s^2, and m_c is 2
        root = np.diag([1.0, scale])
        target = np.array([[1 + s**2, scale], [scale, scale**2]])
        middle = scipy.linalg.sqrtm(root @ target @ root).real
        return (np.linalg.inv(root) @ middle @ np.linalg.inv(root))[1, 0] / scale

    expected = [1 / np.sqrt(1 + s**2), *map(closed_form, weights[1:])]
    found = []
    for weight in weights:
        coupling = respecting_conditions(exact(), weight=weight)
        index = jax.jit(jax.vmap(lambda *a, c=coupling: c(*a).source_index))(keys, x0, x1, cond)
        found.append((np.take_along_axis(x0, np.asarray(index), axis=1) * cond).mean(axis=1))
    for values, right in zip(found, expected, strict=True):
        assert abs(values.mean() - right) < 0.05  # batches of 64 rows are not yet the laws
    assert abs(z_score(found[2], expected[1])) > 10
    assert expected[0] > 0.85
    assert expected[2] < 0.1


def test_equal_conditions_change_nothing():
    x0, x1 = two_ends()
    plain = exact()(KEY, x0, x1).source_index
    for cond in (np.zeros(12, np.float32), np.full((12, 2), 5.0, np.float32)):
        pairing = respecting_conditions(exact(), weight=3.0)(KEY, x0, x1, cond)
        np.testing.assert_array_equal(pairing.source_index, plain)
    np.testing.assert_array_equal(
        respecting_labels(exact())(KEY, x0, x1, np.ones(12, int)).source_index, plain
    )


def test_conditions_that_are_not_finite():
    x0, x1 = two_ends()
    near = respecting_conditions(exact(), weight=1.0)
    inside = jax.jit(near)
    for bad in (np.nan, np.inf, 1e30):
        cond = np.linspace(0, 1, 12, dtype=np.float32)
        cond[3] = bad
        with pytest.raises(ValueError, match=r"not a number for 144 of 144 pairs: conditions hold"):
            near(KEY, x0, x1, cond)
        assert not inside(KEY, x0, x1, cond).converged
    assert not respecting_conditions(sinkhorn(), weight=1.0)(KEY, x0, x1, cond).converged


@pytest.mark.parametrize(
    ("make", "conds", "message"),
    [
        (lambda: respecting_labels(exact()), (), r"needs labels, and neither cond nor source_cond holds any"),
        (
            lambda: respecting_conditions(exact(), weight=1.0),
            ({}, None),
            r"needs numbers, and neither cond nor source",
        ),
        (
            lambda: matching_labels(exact()),
            (np.arange(12),),
            r"one kind .*got source_cond .*None.*respecting_l",
        ),
        (
            lambda: matching_labels(exact()),
            (np.zeros((12, 2), int), np.zeros(12, int)),
            r"\[\(12,\)\] and cond .*\[\(12, 2\)\]",
        ),
        (
            lambda: respecting_labels(exact()),
            ({"a": np.zeros(12, np.float32)},),
            r"cond\['a'\] must be labels, integers or booleans, got float32.*respecting_conditions",
        ),
        (
            lambda: respecting_conditions(exact(), weight=1.0),
            (None, np.arange(12)),
            r"source_cond must be floating-point, got int.*respecting_labels",
        ),
        (lambda: respecting_labels(exact()), (np.arange(11),), r"cond must have one row .* 12 .*\(11,\)"),
    ],
)
def test_missing_or_other_conditions_are_refused(make, conds, message):
    x0, x1 = two_ends()
    for couple in (make(), jax.jit(make())):
        with pytest.raises(ValueError, match=message):
            couple(KEY, x0, x1, *conds)


def test_weights_and_inner_couplings_are_checked():
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"weight must be >= 0, inf for .*, got"):
            respecting_labels(exact(), weight=weight)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"weight must be >= 0 and finite, got"):
            respecting_conditions(exact(), weight=weight)
    with pytest.raises(ValueError, match=r"must take a penalty, as exact\(\).*, got independent"):
        respecting_labels(independent())
