"""Features of samples by an extractor that the user gives, and the Frechet distance between them.

No network is shipped. With the pooled features of Inception v3 the Frechet distance is FID and the kernel distance
KID; any function from samples to ``[num, width]`` serves, and the samples themselves, flattened, do as well.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Shaped

from gft_jax.metrics.rows import flat_pair, flat_rows


def extract_features(
    extractor: Callable[[Any], Any], samples: Shaped[Array | np.ndarray, "..."], *, batch_size: int = 256
) -> np.ndarray:
    """Features of samples, ``[num, width]``, computed batch by batch and kept on the host.

    Bind the extractor and apply it to both sets:
    ``features = partial(extract_features, extractor)``, ``frechet_distance(features(x), features(y))``.

    Args:
        extractor: maps ``[batch, *event]`` to ``[batch, width]``, each row by itself (an inference mode); wrap it in
            ``jax.jit`` if it is of JAX. What it takes, such as the range and the size of images, is its own affair.
        samples: ``[num, *event]``, at least one, passed on as they are.
        batch_size: rows at a time, >= 1; the last batch may be smaller.

    Raises:
        ValueError: for a batch_size below one; no samples, samples that are not finite; an extractor that returns
            another shape, another width in another batch, or features that are not finite, with their number.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    flat_rows("samples", samples, least=1)  # an extractor may turn what is not finite into something that is
    batches: list[np.ndarray] = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        features = np.asarray(jax.device_get(extractor(batch)))
        width = batches[0].shape[1] if batches else "width"
        if features.ndim != 2 or len(features) != len(batch) or width not in ("width", features.shape[1]):
            raise ValueError(
                f"the extractor must return [batch, width], one row for each sample and always the same width: got "
                f"shape {features.shape}, expected ({len(batch)}, {width}), for the batch from sample {start} on"
            )
        batches.append(features)
    features = np.concatenate(batches)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise ValueError(
            f"the extractor returned features that are not finite for {len(bad)} of {len(features)} samples (first "
            f"rows: {bad[:5].tolist()}): check the range of values that it expects"
        )
    return features


def frechet_distance(x: Shaped[Array | np.ndarray, "..."], y: Shaped[Array | np.ndarray, "..."]) -> float:
    """Frechet distance: the squared W2 distance between two normal laws with the moments of two sets of features.

    ``|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^(1/2) S_y S_x^(1/2))^(1/2))`` with means m and covariances S (divisor
    num - 1), no root taken: in the square of the features' unit, >= 0. With the pooled features of Inception v3 it
    is FID.

    Bias: above the distance of the two laws. The means alone add ``tr S_x / num_x + tr S_y / num_y``, the
    covariances more, and with fewer samples than the width they are singular. Report its floor beside it, compare
    values of one ``num`` only, and use many times more samples than the width (FID: 10,000 at the least). The
    `kernel_distance` has no bias.

    Args:
        x: features of generated samples ``[num_x, width]``, at least two; see `extract_features`.
        y: features of real samples ``[num_y, width]``, at least two; the numbers may differ.

    Raises:
        ValueError: for fewer than two samples, unlike widths, features that are not finite.

    Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium",
    arXiv:1706.08500; bias: Chong and Forsyth, arXiv:1911.07023. The trace is taken from singular values (see
    below), and not from the root of a matrix product, which may come out complex.
    """
    a, b = flat_pair(x, y, least=2)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # With S_x = A'A and S_y = B'B, the eigenvalues of S_x^(1/2) S_y S_x^(1/2) are the squared singular values of AB'.
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(max(means + np.sum(root_a**2) + np.sum(root_b**2) - 2 * overlap, 0.0))


def _covariance_root(rows: np.ndarray) -> np.ndarray:
    """A matrix R ``[min(num, width), width]`` whose ``R'R`` is the covariance, by QR: no covariance is formed."""
    return np.asarray(np.linalg.qr((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1), mode="r"))
