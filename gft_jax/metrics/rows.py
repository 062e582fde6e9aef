"""Samples as rows of numbers: the checks that all metrics share."""

import numpy as np
from jaxtyping import Array

LARGEST = 1e150
"""Absolute value up to which samples are measured: sums of squared differences stay finite in float64."""


class NotFinite(ValueError):
    """Samples that are not finite, or whose squares are not: the sampler, or the training before it, has diverged."""


def flat_rows(name: str, samples: Array | np.ndarray, least: int) -> np.ndarray:
    """Samples ``[num, *event]`` as rows ``[num, entries]`` in float64.

    Raises:
        ValueError: for fewer than ``least`` samples, or complex ones.
        NotFinite: for samples that are not finite, with their number, or beyond `LARGEST`.
    """
    if np.ndim(samples) < 1:
        raise ValueError(f"{name} must be samples [num, *event], got one number")
    if np.iscomplexobj(samples):
        raise ValueError(
            f"{name} must be real, got complex numbers (shape {np.shape(samples)}): give real and imaginary parts as "
            "entries of the event"
        )
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
    largest = float(np.max(np.abs(flat), initial=0.0))
    if largest > LARGEST:
        raise NotFinite(
            f"{name} has entries as large as {largest:.3g}; metrics square them and take at most {LARGEST:g}: find out "
            "why the sampler diverged, or rescale both sets"
        )
    return flat


def check_array(name: str, value: object, shape: str) -> None:
    """Refuses what is no array, such as a list of states, with a ValueError that tells the shape wanted."""
    if not isinstance(value, Array | np.ndarray):
        raise ValueError(f"{name} must be an array {shape}, got a {type(value).__name__}: stack its parts")


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
