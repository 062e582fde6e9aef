"""Maximum mean discrepancy: distances between two sets of samples by a positive definite kernel."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Shaped
from scipy.spatial.distance import cdist, pdist

from gft_jax.metrics.rows import flat_pair, flat_rows

_BLOCK_ROWS = 1024  # rows of a kernel matrix held at once

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A positive definite kernel on rows: (``[num_a, width]``, ``[num_b, width]``) -> ``[num_a, num_b]``, in float64."""


def gaussian_kernel(*bandwidths: float) -> Kernel:
    """Gaussian kernel ``exp(-|a - b|^2 / (2 h^2))``, or the mean of several of different bandwidths h.

    Args:
        *bandwidths: one or more, > 0, in the unit of the data. It sees differences of the laws at scales of about
            h; a mixture such as ``gaussian_kernel(h / 2, h, 2 * h)`` sees several.

    Raises:
        ValueError: for no bandwidth, or one that is not positive and finite.
    """
    if not bandwidths or not all(math.isfinite(h) and h > 0 for h in bandwidths):
        raise ValueError(f"bandwidths must be one or more positive, finite numbers, got {bandwidths}")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = cdist(a, b, "sqeuclidean")
        return np.mean([np.exp(squares / (-2 * h**2)) for h in bandwidths], axis=0)

    return kernel


def cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cubic polynomial kernel ``(a . b / width + 1)^3``, of the kernel distance."""
    inner = a @ b.T / a.shape[1] + 1
    return inner * inner * inner


def median_distance(samples: Shaped[Array | np.ndarray, "..."]) -> float:
    """Median Euclidean distance of two different samples, in the unit of the data: a bandwidth that sees them.

    Bias: a sample quantile, O(1 / num). Memory ``num (num - 1) / 2`` doubles (0.4 GB for 10,000).

    Args:
        samples: ``[num, *event]``, at least two.

    Raises:
        ValueError: for fewer than two samples, samples that are not finite.
    """
    distances = pdist(flat_rows("samples", samples, least=2))
    return float(np.median(distances, overwrite_input=True))


def squared_mmd(
    x: Shaped[Array | np.ndarray, "..."],
    y: Shaped[Array | np.ndarray, "..."],
    kernel: Kernel | None = None,
) -> float:
    """Squared maximum mean discrepancy between the laws of two sets of samples, unbiased.

    ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)``, no root taken; for a Gaussian kernel without unit and at most 2. The
    first two expectations are over pairs of *different* samples (a U-statistic), so that the estimate has no bias,
    is 0 on average for equal laws, and may come out negative. This holds for a kernel that is fixed in advance. The
    default bandwidth comes from y: then all x that are compared with one y share a kernel, but the estimate has a
    bias, O(1 / num_y), that fixing the bandwidth removes. Time num_x num_y d; 1024 rows of a kernel matrix are held
    at a time, for a Gaussian kernel about five times ``1024 num`` doubles (0.4 GB for 10,000). The default bandwidth
    needs `median_distance`, whose memory grows with the square of num_y.

    Args:
        x: samples ``[num_x, *event]``, at least two.
        y: real samples ``[num_y, *event]``, at least two; the numbers may differ.
        kernel: a kernel on rows, whose events are flattened; None for
            ``gaussian_kernel(median_distance(y))``.

    Raises:
        ValueError: for fewer than two samples, different events, samples that are not finite, a kernel that returns
            another shape or values that are not finite; without a kernel, for a y whose median distance is 0.

    Source: Gretton et al., "A kernel two-sample test", JMLR 13 (2012), equation 3.
    """
    a, b = flat_pair(x, y, least=2)
    if kernel is None:
        bandwidth = median_distance(b)
        if bandwidth == 0:
            raise ValueError(
                f"at least half of the pairs of the {len(b)} samples in y coincide, and their median distance is no "
                "bandwidth: give a kernel such as gaussian_kernel(1.0)"
            )
        kernel = gaussian_kernel(bandwidth)
    return _mean_within(kernel, a) + _mean_within(kernel, b) - 2 * _total(kernel, a, b) / (len(a) * len(b))


def kernel_distance(x: Shaped[Array | np.ndarray, "..."], y: Shaped[Array | np.ndarray, "..."]) -> float:
    """Kernel distance: the squared MMD of features under the kernel ``(x . y / width + 1)^3``, unbiased.

    With the pooled features of Inception v3 it is the kernel Inception distance (KID), not multiplied by 1000. It
    compares the first three moments of the features: without unit, 0 on average for equal laws, and it may
    come out negative. Published values are means over random subsets of mostly 1000 samples; the expectation is
    the same, and using all pairs at once scatters less. Memory as for `squared_mmd` with a kernel: 1024 rows at a
    time.

    Args:
        x: features of generated samples ``[num_x, width]``, at least two; see `extract_features`.
        y: features of real samples ``[num_y, width]``, at least two; the numbers may differ.

    Raises:
        ValueError: for fewer than two samples, unlike widths, features that are not finite.

    Source: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", arXiv:1801.01401.
    """
    return squared_mmd(x, y, cubic_kernel)


def kernel_matrix(kernel: Kernel, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kernel matrix ``[len(a), len(b)]``; raises ValueError for another shape or values that are not finite."""
    values = np.asarray(kernel(a, b), np.float64)
    if values.shape != (len(a), len(b)):
        raise ValueError(
            f"the kernel must return one value for each pair of rows, shape {(len(a), len(b))}, got {values.shape}"
        )
    num_bad = int(np.sum(~np.isfinite(values)))
    if num_bad:
        raise ValueError(
            f"the kernel returned {num_bad} of {values.size} values that are not finite: rescale the samples"
        )
    return values


def _total(kernel: Kernel, a: np.ndarray, b: np.ndarray) -> float:
    starts = range(0, len(a), _BLOCK_ROWS)
    return float(sum(kernel_matrix(kernel, a[start : start + _BLOCK_ROWS], b).sum() for start in starts))


def _mean_within(kernel: Kernel, a: np.ndarray) -> float:
    """Mean of the kernel over pairs of different rows."""
    total = 0.0
    for start in range(0, len(a), _BLOCK_ROWS):
        values = kernel_matrix(kernel, a[start : start + _BLOCK_ROWS], a)
        total += float(values.sum() - np.trace(values[:, start:]))
    return total / (len(a) * (len(a) - 1))
