import math

import numpy as np
import pytest
from samples import normal
from vendi_score import vendi

from gft_jax.metrics import cubic_kernel, gaussian_kernel, mean_pairwise_distance, vendi_score


def test_mean_pairwise_distance_leaves_out_the_zero_distances_of_samples_to_themselves():
    samples = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert mean_pairwise_distance(samples) == pytest.approx((5 + 0 + 5) / 3)
    images = np.random.default_rng(0).normal(size=(2000, 2, 2))
    expected = 2 * math.gamma(2.5) / math.gamma(2)  # E|x - y| of normal vectors in four dimensions
    assert mean_pairwise_distance(images) == pytest.approx(expected, rel=0.01)
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise_distance(samples[:1])


def test_vendi_score_counts_different_samples():
    assert vendi_score(np.ones((7, 2, 2))) == pytest.approx(1, abs=1e-9)
    assert vendi_score(3 * np.eye(7)) == pytest.approx(7, rel=1e-12)
    # Two kinds, three times and once: exp of the entropy of (3/4, 1/4).
    kinds = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 5.0], [3.0, 0.0]])
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert vendi_score(kinds) == pytest.approx(expected, rel=1e-12)
    far_apart = gaussian_kernel(0.1)
    assert vendi_score(np.arange(7.0), far_apart) == pytest.approx(7, rel=1e-9)
    assert vendi_score(np.zeros(7), far_apart) == pytest.approx(1, abs=1e-9)


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`")  # the package's own
def test_vendi_score_agrees_with_the_reference_package():
    for shape in ((40, 6), (6, 40)):
        samples = 1.5 + normal(*shape)
        expected = vendi.score_dual(samples)
        assert vendi_score(samples) == pytest.approx(expected, rel=1e-9)

        def cosine(a, b):
            return a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)

        assert vendi_score(samples, cosine) == pytest.approx(expected, rel=1e-9)
        assert expected < 0.9 * min(shape)
        kernel = gaussian_kernel(np.sqrt(shape[1]))
        expected = vendi.score_K(kernel(samples, samples))
        assert vendi_score(samples, kernel) == pytest.approx(expected, rel=1e-9)
        assert 1.5 < expected < 0.9 * shape[0]


def test_vendi_score_grows_with_the_number_of_samples():
    kernel = gaussian_kernel(0.5)
    scores = [np.mean([vendi_score(s, kernel) for s in normal(20, num, 3)]) for num in (20, 80)]
    assert scores[1] > 1.5 * scores[0]


def test_vendi_score_checks_what_it_is_given():
    samples = normal(6, 2)
    with pytest.raises(ValueError, match=r"2 of 6 samples are zero and have no cosine"):
        vendi_score(np.where(np.arange(6)[:, None] < 2, 0, samples))
    with pytest.raises(ValueError, match=r"must be 1 between a sample and itself, got values from"):
        vendi_score(samples, cubic_kernel)
    # 1 up to a distance of 1.5 and 0 beyond: two samples are like the third, and not like each other.
    with pytest.raises(
        ValueError, match=r"positive semi-definite, but on these 3 samples .* eigenvalue -0.41"
    ):
        vendi_score(np.arange(3.0), lambda a, b: 1.0 * (np.abs(a - b.T) < 1.5))
    with pytest.raises(ValueError, match=r"symmetric, but k\(a, b\) and k\(b, a\) differ by 0.5"):
        vendi_score(samples, lambda a, b: np.eye(6) + np.diag(np.full(5, 0.5), 1))
    # What float32 rounds is no negative part.
    single = vendi_score(np.zeros(6), lambda a, b: np.ones((6, 6)) - 1e-7 * np.triu(np.ones((6, 6)), 1))
    assert single == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=r"shape \(6, 6\), got \(6,\)"):
        vendi_score(samples, lambda a, b: np.ones(6))
    with pytest.raises(ValueError, match=r"samples has 0 samples"):
        vendi_score(samples[:0])
    with pytest.raises(ValueError, match=r"6 of 6 samples in samples are not finite"):
        vendi_score(samples * np.nan)
