import tracemalloc

import numpy as np
import pytest
from prdc import compute_prdc
from samples import normal, z_score

from gft_jax.metrics import Prdc, prdc


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
