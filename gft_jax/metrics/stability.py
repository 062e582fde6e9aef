"""Stability of convergence: statistics of the curve of a metric against the training step, in float64."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr


def spearman(steps: ArrayLike, values: ArrayLike) -> float:
    """Spearman rank correlation of training step and metric, in [-1, 1].

    -1 is monotone convergence of a metric that should fall. Ties get the average of their ranks. Without unit,
    unchanged by any increasing transformation of the metric. For a constant curve the correlation is undefined
    and the result is nan. Bias: noise in the values pulls it towards 0. Short curves scatter: without any trend the
    standard deviation is ``1 / sqrt(num - 1)``.

    Args:
        steps: training steps ``[num]``, num >= 3, not all equal.
        values: the metric at these steps ``[num]``.

    Raises:
        ValueError: for fewer than three points, different lengths, equal steps, values that are not finite.
    """
    x, y = _curve("steps", steps), _curve("values", values)
    if x.shape != y.shape:
        raise ValueError(f"steps and values must be of one length, got shapes {x.shape} and {y.shape}")
    if np.ptp(x) == 0:
        raise ValueError(f"all {len(x)} steps are {x[0]:g}: the trend along a curve needs different steps")
    if np.ptp(y) == 0:  # scipy would warn as well
        return float("nan")
    return float(np.asarray(spearmanr(x, y))[0])


def instantaneous_variance(values: ArrayLike) -> float:
    """Variance of the local increments of a convergence curve, ``Var_k(values[k+1] - values[k])``.

    The mean increment is subtracted and the sum divided by the number of increments (ddof = 0), so a straight
    line has 0, whatever its slope. In the square of the metric's unit. Bias: low by the factor
    ``1 - 1 / (num - 1)`` for independent increments. Noise of variance s^2 in each value contributes about
    ``2 s^2``, and increments grow with the spacing of the evaluations: compare curves evaluated at the same steps
    with the same number of samples.

    Args:
        values: the metric at equally spaced training steps ``[num]``, num >= 3.

    Raises:
        ValueError: for fewer than three values, or values that are not finite.
    """
    return float(np.var(np.diff(_curve("values", values))))


def _curve(name: str, curve: ArrayLike) -> np.ndarray:
    array = np.asarray(curve, np.float64)
    if array.ndim != 1 or len(array) < 3:
        raise ValueError(f"{name} must be one curve [num] with num >= 3, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{name} has {len(bad)} entries that are not finite, at positions {bad.tolist()}")
    return array
