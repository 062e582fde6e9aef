import math
from functools import partial

import jax
import numpy as np
import pytest
from samples import normal, z_score
from sklearn.linear_model import LogisticRegression

from gft_jax.metrics import classifier_accuracy, permutation_test

KEY = jax.random.key(0)


def test_the_best_classifier_reaches_its_closed_form():
    """N(0, 1) against N(shift, 1): a threshold half-way is right with probability Phi(shift / 2)."""
    shift, num = 1.0, 400
    x, y = normal(20, num, 1), shift + normal(20, num, 1, seed=1)
    values = [
        classifier_accuracy(KEY, a, b, classifier=LogisticRegression(), num_folds=3)
        for a, b in zip(x, y, strict=True)
    ]
    best = (1 + math.erf(shift / 2 / math.sqrt(2))) / 2
    # The fitted threshold costs a share of 1 / num.
    assert abs(z_score(values, best)) < 3
    assert abs(z_score(values, best + 0.02)) > 5


def test_a_forest_is_the_default():
    x, y = normal(60, 2), normal(60, 2, seed=1)
    accuracy = partial(classifier_accuracy, KEY, num_folds=2)
    assert 0.3 < accuracy(x, y) < 0.7
    # A difference that no linear classifier sees.
    assert accuracy(5 * x, y) > 0.8
    assert accuracy(5 * x, y, classifier=LogisticRegression()) < 0.7
    assert accuracy(x, y) == accuracy(x, y)


def test_copies_show_as_less_than_a_half():
    x = normal(60, 2)
    assert classifier_accuracy(KEY, x, x) < 0.3


def test_both_sets_count_alike():
    """A classifier that always says the larger set is right half of the time, not three quarters."""
    x, y = normal(90, 2), normal(30, 2, seed=1)
    indifferent = LogisticRegression(C=1e-9)
    assert classifier_accuracy(KEY, x, y, classifier=indifferent) == 0.5
    assert not hasattr(indifferent, "coef_")  # copies were trained


def test_an_accuracy_has_an_exact_p_value():
    accuracy = partial(classifier_accuracy, KEY, classifier=LogisticRegression(), num_folds=2)
    x = normal(30, 1)
    found = permutation_test(jax.random.key(1), accuracy, x, 1.5 + normal(30, 1, seed=1), num_permutations=19)
    assert found.p_value == pytest.approx(1 / 20)
    assert found.value > max(found.null_values)


def test_a_classifier_test_checks_what_it_is_given():
    x = normal(6, 2)
    with pytest.raises(ValueError, match=r"num_folds must be >= 2, got 1"):
        classifier_accuracy(KEY, x, x, num_folds=1)
    with pytest.raises(ValueError, match=r"y has 4 samples \(shape \(4, 2\)\), needs at least 5"):
        classifier_accuracy(KEY, x, x[:4])
    with pytest.raises(ValueError, match=r"one event shape, got x \(6, 2\) and y \(6, 1\)"):
        classifier_accuracy(KEY, x, x[:, :1])
    with pytest.raises(ValueError, match=r"6 of 6 samples in x are not finite"):
        classifier_accuracy(KEY, np.nan * x, x)
