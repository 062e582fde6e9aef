"""Samples as rows of numbers: the checks that all metrics share."""

import numpy as np
from jaxtyping import Array


class NotFinite(ValueError):
    """Samples that are not finite: the sampler, or the training before it, has diverged."""


def flat_rows(name: str, samples: Array | np.ndarray, least: int) -> np.ndarray:
    """Samples ``[num, *event]`` as rows ``[num, entries]`` in float64.

    Raises:
        ValueError: for fewer than ``least`` samples.
        NotFinite: for samples that are not finite, with their number.
    """
    if np.ndim(samples) < 1:
        raise ValueError(f"{name} must be samples [num, *event], got one number")
    if len(samples) < least:
        raise ValueError(
            f"{name} has {len(samples)} samples (shape {np.shape(samples)}), needs at least {least}"
        )
    flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    if len(bad):
        raise NotFinite(
            f"{len(bad)} of {len(flat)} samples in {name} are not finite (first rows: {bad[:5].tolist()}); "
            "a metric of the others would hide them: find out why the sampler diverged"
        )
    return flat


def flat_pair(x: Array | np.ndarray, y: Array | np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of samples of one event shape, each as `flat_rows` gives it.

    Raises:
        ValueError: for different events (features of unlike width among them), and as `flat_rows`.
    """
    if np.ndim(x) < 1 or np.ndim(y) < 1 or np.shape(x)[1:] != np.shape(y)[1:]:
        raise ValueError(
            f"x and y must be samples [num, *event] of one event shape, got x {np.shape(x)} and y {np.shape(y)}"
        )
    return flat_rows("x", x, least), flat_rows("y", y, least)
