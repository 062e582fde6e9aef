"""How varied a set of samples is."""

import numpy as np
from jaxtyping import Array, Shaped

from gft_jax.metrics.distances import sum_of_distances
from gft_jax.metrics.kernels import Kernel, kernel_matrix
from gft_jax.metrics.rows import flat_rows

_ROUNDING = 1e-5  # of a kernel that was computed in float32


def mean_pairwise_distance(samples: Shaped[Array | np.ndarray, "..."]) -> float:
    """Mean Euclidean distance of two different samples, ``2 / (n (n - 1)) sum_{i<j} |x_i - x_j|``.

    In the unit of the data, unbiased. It falls when samples collapse onto few modes; compare it with that of real
    data. 1024 rows of the distance matrix are held at a time, ``1024 num`` doubles.

    Args:
        samples: ``[num, *event]``, at least two.

    Raises:
        ValueError: for fewer than two samples, samples that are not finite.
    """
    rows = flat_rows("samples", samples, least=2)
    return float(sum_of_distances(rows, rows) / (len(rows) * (len(rows) - 1)))


def vendi_score(samples: Shaped[Array | np.ndarray, "..."], kernel: Kernel | None = None) -> float:
    """Vendi score: the effective number of different samples, between 1 (all alike) and num (all unlike).

    ``exp(-sum_i p_i log p_i)`` with p the eigenvalues of the matrix ``k(x_i, x_j) / num`` of a similarity k with
    ``k(x, x) = 1``.

    Bias: below the value for the law itself (that of infinitely many samples, which may be infinite), and growing
    with num. Compare sets of one size, under one kernel.

    Args:
        samples: samples or their features ``[num, *event]``, at least one. The usual choice are the features of a
            network: pixels are alike in cosine whatever they show.
        kernel: a positive semi-definite kernel on rows (events flattened) with ones on its diagonal, such as
            ``gaussian_kernel(h)``; memory num^2, time num^3 (about 2 s for 2000). None for the cosine of the angle
            between rows, which depends on where the origin lies: time ``num width min(num, width)``.

    Raises:
        ValueError: for no samples, samples that are not finite; for the cosine, samples that are zero; a kernel
            that is not 1 on the diagonal, not symmetric or (beyond rounding) not positive semi-definite on these
            samples, or returns another shape or values that are not finite.

    Source: Friedman and Dieng, "The Vendi score: a diversity evaluation metric for machine learning",
    arXiv:2210.02410.
    """
    rows = flat_rows("samples", samples, least=1)
    if kernel is None:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        num_zero = int(np.sum(norms == 0))
        if num_zero:
            raise ValueError(
                f"{num_zero} of {len(rows)} samples are zero and have no cosine: give another kernel"
            )
        # The squared singular values of the unit rows are the eigenvalues of their matrix of cosines.
        eigenvalues = np.linalg.svd(rows / norms, compute_uv=False) ** 2
    else:
        similarity = kernel_matrix(kernel, rows, rows)
        diagonal = np.diagonal(similarity)
        if not np.allclose(diagonal, 1):
            raise ValueError(
                "the kernel must be 1 between a sample and itself, got values from "
                f"{diagonal.min():g} to {diagonal.max():g}"
            )
        asymmetry = float(np.max(np.abs(similarity - similarity.T)))
        if asymmetry > _ROUNDING:
            raise ValueError(f"the kernel must be symmetric, but k(a, b) and k(b, a) differ by {asymmetry:g}")
        eigenvalues = np.linalg.eigvalsh(similarity)
        if eigenvalues[0] < -_ROUNDING * len(rows):
            raise ValueError(
                f"the kernel must be positive semi-definite, but on these {len(rows)} samples its matrix has the "
                f"eigenvalue {eigenvalues[0]:g}: shares of a negative part mean nothing"
            )
    share = eigenvalues[eigenvalues > 0] / len(rows)  # rounding leaves some a little below zero
    return float(np.exp(-np.sum(share * np.log(share))))
