from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import normal, z_score
from scipy.linalg import sqrtm

from gft_jax import gaussian
from gft_jax.metrics import extract_features, frechet_distance, kernel_distance


def with_moments(mean, cov, num, seed):
    """Samples whose mean and covariance (divisor num - 1) are exactly those given."""
    noise = normal(num, len(mean), seed=seed)
    noise -= noise.mean(axis=0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(noise.T)), noise.T).T
    return mean + white @ np.linalg.cholesky(cov).T


def test_frechet_distance_of_gaussians_in_closed_form(x64):
    mean_x, mean_y = normal(2, 3)
    root_x, root_y = normal(2, 3, 3, seed=1)
    cov_x, cov_y = root_x @ root_x.T, root_y @ root_y.T
    found = frechet_distance(with_moments(mean_x, cov_x, 20, 2), with_moments(mean_y, cov_y, 30, 3))
    trace = np.trace(cov_x + cov_y - 2 * np.real(sqrtm(cov_x @ cov_y)))
    np.testing.assert_allclose(found, np.sum((mean_x - mean_y) ** 2) + trace, rtol=1e-9)
    laws = [gaussian.Gaussian(jnp.asarray(m), jnp.asarray(c)) for m, c in ((mean_x, cov_x), (mean_y, cov_y))]
    np.testing.assert_allclose(found, gaussian.w2(*laws) ** 2, rtol=1e-9)


def test_frechet_distance_with_fewer_samples_than_features():
    x, y = normal(5, 40), 1 + normal(9, 40, seed=1)
    trace = np.trace(np.cov(x.T) + np.cov(y.T) - 2 * np.real(sqrtm(np.cov(x.T) @ np.cov(y.T))))
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + trace
    # scipy's root of a singular matrix is the less exact of the two.
    np.testing.assert_allclose(frechet_distance(x, y), expected, rtol=1e-4)
    assert frechet_distance(x, x[::-1]) < 1e-10
    shift = normal(40, seed=2)
    np.testing.assert_allclose(frechet_distance(x + shift, x), np.sum(shift**2), rtol=1e-10)


def test_frechet_distance_of_equal_laws_is_above_zero_by_more_than_the_error_of_the_means():
    x, y = normal(200, 30, 2), normal(200, 20, 2, seed=1)
    values = [frechet_distance(a, b) for a, b in zip(x, y, strict=True)]
    assert z_score(values, 2 / 30 + 2 / 20) > 3


def test_features_are_extracted_in_batches():
    weights = normal(4, 3)
    sizes = []

    @jax.jit
    def extractor(batch):
        sizes.append(len(batch))
        return jnp.tanh(batch.reshape(len(batch), -1) @ weights)

    images = normal(7, 2, 2, seed=1).astype(np.float32)
    features = partial(extract_features, extractor, batch_size=3)
    np.testing.assert_allclose(features(images), np.tanh(images.reshape(7, 4) @ weights), rtol=1e-5)
    assert sizes == [3, 1]  # traced once for whole batches, once for the rest
    np.testing.assert_array_equal(features(jnp.asarray(images)), features(images))
    assert frechet_distance(features(images), features(images[:6])) > 0


def test_an_extractor_is_checked():
    samples = normal(6, 2)

    def nan_for_large(batch):
        return np.where(batch > 1, np.nan, batch)

    num_bad = np.sum((samples > 1).any(axis=1))
    assert 0 < num_bad < 6
    with pytest.raises(ValueError, match=rf"not finite for {num_bad} of 6 samples"):
        extract_features(nan_for_large, samples, batch_size=4)
    with pytest.raises(
        ValueError, match=r"got shape \(2, 4\), expected \(2, 8\), for the batch from sample 4"
    ):
        extract_features(lambda batch: np.ones((len(batch), 2 * len(batch))), samples, batch_size=4)
    for features in (np.ones((6, 2, 2)), np.ones((5, 2)), np.ones(6)):
        with pytest.raises(ValueError, match=r"must return \[batch, width\].* expected \(6, width\)"):
            extract_features(lambda batch, features=features: features, samples)
    # An extractor that clips would make a number of what is none.
    with pytest.raises(ValueError, match=r"1 of 6 samples in samples are not finite"):
        extract_features(lambda batch: np.clip(batch, 0, 1), np.where(samples == samples[2], np.inf, samples))
    with pytest.raises(ValueError, match=r"samples has 0 samples"):
        extract_features(nan_for_large, samples[:0])
    with pytest.raises(ValueError, match=r"batch_size must be >= 1, got 0"):
        extract_features(nan_for_large, samples, batch_size=0)


def test_features_of_unlike_width_are_refused():
    x, y = normal(6, 4), normal(6, 3)
    for metric in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match=r"got x \(6, 4\) and y \(6, 3\)"):
            metric(x, y)
    with pytest.raises(ValueError, match=r"x has 1 samples \(shape \(1, 4\)\), needs at least 2"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match=r"6 of 6 samples in y are not finite"):
        frechet_distance(x, np.nan * x)
