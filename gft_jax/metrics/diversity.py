"""How varied a set of samples is."""

import numpy as np
from jaxtyping import Array, Shaped

from gft_jax.metrics.distances import flat_rows, sum_of_distances


def mean_pairwise_distance(samples: Shaped[Array | np.ndarray, "..."]) -> float:
    """Mean Euclidean distance of two different samples, ``2 / (n (n - 1)) sum_{i<j} |x_i - x_j|``.

    In the unit of the data. It falls when samples collapse onto few modes; compare it with that of real data.

    Args:
        samples: ``[num, *event]``, at least two.

    Raises:
        ValueError: for fewer than two samples, samples that are not finite.
    """
    rows = flat_rows("samples", samples, least=2)
    return float(sum_of_distances(rows, rows) / (len(rows) * (len(rows) - 1)))
