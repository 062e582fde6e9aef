"""Classifier two-sample test: can a classifier tell generated samples from real ones?"""

from typing import Any

import numpy as np
from jaxtyping import Array, Key, Shaped

from gft_jax.metrics.resampling import generator
from gft_jax.metrics.rows import flat_pair


def classifier_accuracy(
    key: Key[Array, ""],
    x: Shaped[Array | np.ndarray, "..."],
    y: Shaped[Array | np.ndarray, "..."],
    *,
    classifier: Any = None,
    num_folds: int = 5,
) -> float:
    """Accuracy, on samples that it was not trained on, of a classifier that tells x from y.

    By cross-validation: in turn each fold (a random part of x and the like part of y) is classified by a classifier
    that was trained on all others; the mean of the shares of x and of y that are recognised, in [0, 1]. About 1/2
    where the classifier finds no difference, 1 where it finds every sample out. Well below 1/2 means that samples
    of x are copies of samples of y: their nearest training samples carry the other label.

    Bias: below the accuracy of the best possible classifier, which is ``(1 + TV) / 2`` for the total variation
    distance TV of the laws; how far depends on classifier and number of samples. Accuracies on the folds are
    dependent, so a binomial p-value is too small: `permutation_test` has an exact one, and `confidence_interval` an
    interval:

        accuracy = partial(classifier_accuracy, key_folds)
        permutation_test(key_permutations, accuracy, x, y).p_value

    Args:
        key: draws the folds.
        x: generated samples or their features ``[num_x, *event]``, at least num_folds.
        y: real ones ``[num_y, *event]``, at least num_folds. The numbers may differ, but most classifiers then
            favour the larger set, and tell less.
        classifier: an estimator of scikit-learn's form (``fit(rows, labels)``, ``predict(rows)``), of which each
            fold trains a copy. None for a random forest of 100 trees, seeded by the key (about a second for 1000
            samples of width 64). The choice decides what is seen: weak noise on single entries is plain to a forest,
            and nearly hidden from nearest neighbours and logistic regression.
        num_folds: >= 2.

    Raises:
        ValueError: for num_folds below two, fewer samples than folds, different events, samples that are not finite.

    Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", arXiv:1610.06545. scikit-learn is
    imported here.
    """
    from sklearn.base import clone
    from sklearn.ensemble import RandomForestClassifier

    if num_folds < 2:
        raise ValueError(
            f"num_folds must be >= 2, got {num_folds}: with one fold nothing is left to train on"
        )
    a, b = flat_pair(x, y, least=num_folds)
    random = generator(key)
    rows = np.concatenate([a, b])
    generated = np.arange(len(rows)) < len(a)
    fold = np.concatenate([random.permutation(np.arange(len(part)) % num_folds) for part in (a, b)])
    forest = RandomForestClassifier(100, random_state=int(random.integers(2**31)))
    recognised = np.zeros(len(rows), bool)
    for k in range(num_folds):
        held_out = fold == k
        model: Any = clone(forest if classifier is None else classifier)
        model.fit(rows[~held_out], generated[~held_out])
        recognised[held_out] = model.predict(rows[held_out]) == generated[held_out]
    return float((np.mean(recognised[generated]) + np.mean(recognised[~generated])) / 2)
