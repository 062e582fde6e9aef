import tracemalloc

import numpy as np
import pytest
from prdc import compute_prdc
from samples import normal, z_score

from gft_jax.metrics import Prdc, label_accuracy, prdc


def test_prdc_agrees_with_the_reference_package(monkeypatch):
    monkeypatch.setattr("gft_jax.metrics.neighbours._BLOCK_ROWS", 16)  # so that the last block is a part
    x, y = 0.5 + normal(40, 3), normal(55, 3, seed=1)
    for k in (1, 3):
        expected = compute_prdc(real_features=y, fake_features=x, nearest_k=k)
        found = prdc(x, y, num_neighbours=k)
        np.testing.assert_allclose(found, [expected[name] for name in Prdc._fields], rtol=1e-12)
    assert len(set(found)) == 4  # so that no two could have been exchanged unseen


def test_prdc_holds_a_block_of_distances_and_not_all(monkeypatch):
    monkeypatch.setattr("gft_jax.metrics.neighbours._BLOCK_ROWS", 32)
    x, y = normal(1024, 2), normal(1024, 2, seed=1)
    tracemalloc.start()
    prdc(x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    block = 32 * 1024 * 8  # bytes; all distances are 32 blocks
    assert block < peak < 4 * block


def test_prdc_by_hand():
    # Balls around 0, 1, 10 reach 1, 1, 9; those around 0.5, 0.6, 100 reach 0.1, 0.1, 99.4.
    real, generated = np.array([0.0, 1.0, 10.0]), np.array([0.5, 0.6, 100.0])
    found = prdc(generated, real, num_neighbours=1)
    # 0.5 is in two balls and 0.6 in two; 9.4 from 10 is beyond 9.
    expected = Prdc(precision=2 / 3, recall=2 / 3, density=4 / 3, coverage=2 / 3)
    # Real 1 and 10 are within 99.4 of 100, and 0 is not.
    np.testing.assert_allclose(found, expected)


def test_prdc_of_equal_laws():
    """Density 1 and the coverage in closed form; the coverage of another number of neighbours is refused."""
    num_x, num_y, k = 12, 15, 2
    x, y = normal(600, num_x, 2), normal(600, num_y, 2, seed=1)
    values = np.array([prdc(a, b, num_neighbours=k) for a, b in zip(x, y, strict=True)])

    def coverage(k):
        i = np.arange(1, k + 1)
        return 1 - np.prod((num_y - i) / (num_x + num_y - i))

    assert abs(z_score(values[:, 2], 1)) < 3
    assert abs(z_score(values[:, 2], num_y / (num_y - 1))) > 3
    assert abs(z_score(values[:, 3], coverage(k))) < 3
    assert abs(z_score(values[:, 3], coverage(k + 1))) > 5


def test_prdc_checks_what_it_is_given():
    x = normal(6, 2)
    with pytest.raises(ValueError, match=r"y has 5 samples \(shape \(5, 2\)\), needs at least 6"):
        prdc(x, x[:5])
    with pytest.raises(ValueError, match=r"num_neighbours must be >= 1, got 0"):
        prdc(x, x, num_neighbours=0)
    with pytest.raises(ValueError, match=r"one event shape, got x \(6, 2\) and y \(6, 1\)"):
        prdc(x, x[:, :1])
    with pytest.raises(ValueError, match=r"3 of 6 samples in x are not finite"):
        prdc(np.where(np.arange(6)[:, None] < 3, np.nan, x), x)


def test_label_accuracy_of_overlapping_classes_is_that_of_cover_and_hart():
    """One neighbour: the mean of eta^2 + (1 - eta)^2, with eta the probability of a class at a point."""
    num, points = 4000, np.linspace(-6, 8, 2001)
    density = np.exp(-(np.subtract.outer(points, [0.0, 2.0]) ** 2) / 2)
    eta = density[:, 0] / density.sum(axis=1)
    expected = np.average(eta**2 + (1 - eta) ** 2, weights=density.sum(axis=1))
    told = known = np.arange(num) % 2
    x, y = normal(num, 1) + 2 * told[:, None], normal(num, 1, seed=1) + 2 * known[:, None]
    error = np.sqrt(expected * (1 - expected) / num)
    assert abs(label_accuracy(x, told, y, known, num_neighbours=1) - expected) < 3 * error
    # Labels that are ignored, and those of the other class.
    ignored = label_accuracy(x, told[np.random.default_rng(0).permutation(num)], y, known, num_neighbours=1)
    assert abs(ignored - 0.5) < 3 * np.sqrt(0.25 / num) < abs(expected - 0.5)
    assert abs(label_accuracy(x, 1 - told, y, known, num_neighbours=1) - (1 - expected)) < 3 * error


def test_label_accuracy_by_hand():
    # 0.4 is nearer to 0 (class 7) than both of class 8 together weigh: 1/0.4 = 2.5 against 1/0.6 + 1/1.6 = 2.3.
    real, known = np.array([0.0, 1.0, 2.0]), np.array([7, 8, 8])
    assert (
        label_accuracy(np.array([0.4, 0.4, 1.9]), np.array([7, 8, 8]), real, known, num_neighbours=3) == 2 / 3
    )
    assert (
        label_accuracy(np.array([0.45]), np.array([8]), real, known, num_neighbours=3) == 1.0
    )  # 2.2 against 2.5
    assert label_accuracy(real, known, real, known, num_neighbours=3) == 1.0


def test_label_accuracy_checks_what_it_is_given():
    x, labels = normal(6, 2), np.arange(6) % 2
    with pytest.raises(ValueError, match=r"y has 6 samples, fewer than num_neighbours=7"):
        label_accuracy(x, labels, x, labels, num_neighbours=7)
    with pytest.raises(ValueError, match=r"num_neighbours must be >= 1, got 0"):
        label_accuracy(x, labels, x, labels, num_neighbours=0)
    with pytest.raises(
        ValueError, match=r"y_labels must be integers, one for each of 6 samples, got float64"
    ):
        label_accuracy(x, labels, x, labels.astype(float))
    with pytest.raises(ValueError, match=r"labels must be integers, .* of shape \(5,\)"):
        label_accuracy(x, labels[:5], x, labels)
