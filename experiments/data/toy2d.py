"""Laws in the plane, under a shift from one to another; samples are drawn, nothing is downloaded.

All have mean zero and lie, but for the tails of a normal law, within [-4, 4] in both coordinates:

* ``8-gaussians``: equal mixture of eight normal laws with centres ``3 (cos(k pi/4), sin(k pi/4))``, k = 0 to 7, and
  standard deviation 0.25 (variance 0.0625) along each axis. Variance of the whole: 9/2 + 1/16 along each axis.
* ``moons``: two half circles that reach into each other. With theta uniform on [0, pi] and s = 1 or -1 with equal
  probability, ``2 s (cos(theta) - 1/2, sin(theta) - 1/4)`` plus noise. Variances 3 and 9/4 - 4/pi, plus the noise.
* ``s-curve``: with theta uniform on [-3 pi/2, 3 pi/2], ``1.5 (sin(theta), sign(theta) (cos(theta) - 1))`` plus noise.
  Variances 9/8 and 27/8 + 3/pi, plus the noise.
* ``checkerboard``: uniform on eight of the sixteen squares of side 1.5 that tile [-3, 3] x [-3, 3], those whose row
  and column, counted from 0, are both even or both odd. Variance 3 along each axis, covariance 9/16; no noise.
* ``normal``: one normal law with standard deviation 1.5 along each axis: it covers most of all the others.

The noise of moons and s-curve is normal with standard deviation 0.15 (variance 0.0225), independent in the two
coordinates. scikit-learn's ``make_moons`` does not serve: its angles are a fixed grid, the same in every draw.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import special

from experiments.data.shifted import ShiftedData

Law = Literal["8-gaussians", "moons", "s-curve", "checkerboard", "normal"]

NUM_BASE = 10_000
MAX_TARGET = 10_000
NUM_HELD_OUT = 512
"""Points for evaluation: the same ones for every number of target points."""

_RADIUS, _SPREAD = 3.0, 0.25
_NOISE = 0.15
_SIDE = 1.5
_WIDE = 1.5
_NUM_NODES = 200
"""Points of a half of a curve by which its density is summed up: a fourth of the noise apart, or less."""


def _eight_gaussians(generator: np.random.Generator, num: int) -> np.ndarray:
    angle = generator.integers(8, size=num) * (np.pi / 4)
    return _RADIUS * _circle(angle) + generator.normal(0.0, _SPREAD, (num, 2))


def _moons(generator: np.random.Generator, num: int) -> np.ndarray:
    angle = generator.uniform(0.0, np.pi, num)
    sign = generator.choice([-1.0, 1.0], (num, 1))
    return 2.0 * sign * (_circle(angle) - [0.5, 0.25]) + generator.normal(0.0, _NOISE, (num, 2))


def _s_curve(generator: np.random.Generator, num: int) -> np.ndarray:
    angle = generator.uniform(-1.5 * np.pi, 1.5 * np.pi, num)
    curve = np.stack([np.sin(angle), np.sign(angle) * (np.cos(angle) - 1.0)], axis=1)
    return 1.5 * curve + generator.normal(0.0, _NOISE, (num, 2))


def _checkerboard(generator: np.random.Generator, num: int) -> np.ndarray:
    column = generator.integers(4, size=num)
    row = 2 * generator.integers(2, size=num) + column % 2
    return _SIDE * (np.stack([column, row], axis=1) - 2.0 + generator.uniform(size=(num, 2)))


def _normal(generator: np.random.Generator, num: int) -> np.ndarray:
    return generator.normal(0.0, _WIDE, (num, 2))


def _circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


_LAWS: dict[Law, Callable[[np.random.Generator, int], np.ndarray]] = {
    "8-gaussians": _eight_gaussians,
    "moons": _moons,
    "s-curve": _s_curve,
    "checkerboard": _checkerboard,
    "normal": _normal,
}


def draw(law: Law, generator: np.random.Generator, num: int) -> np.ndarray:
    """Independent points ``[num, 2]`` of a law, float32.

    Raises:
        ValueError: there is no such law.
    """
    if law not in _LAWS:
        raise ValueError(f"law is {law!r}; there are {', '.join(_LAWS)}")
    return _LAWS[law](generator, num).astype(np.float32)


def log_density(law: Law, points: np.ndarray) -> np.ndarray:
    """Logarithm of the density of a law at points ``[num, 2]``, ``[num]``; -inf outside of a checkerboard.

    Curves with noise are summed up over evenly spaced nodes.
    """
    points = np.asarray(points, np.float64)
    if law == "checkerboard":
        column, row = np.floor(points / _SIDE).astype(int).T + 2
        inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < 4) & ((column + row) % 2 == 0)
        return np.where(inside, -np.log(8 * _SIDE**2), -np.inf)
    nodes, spread = _nodes(law)
    squared = ((points[:, None] - nodes) ** 2).sum(axis=-1) / spread**2
    return special.logsumexp(-squared / 2, axis=1) - np.log(2 * np.pi * spread**2 * len(nodes))


def _nodes(law: Law) -> tuple[np.ndarray, float]:
    """Centres ``[num, 2]`` of equally likely normal laws that a law is a mixture of, and their standard deviation."""
    if law == "normal":
        return np.zeros((1, 2)), _WIDE
    if law == "8-gaussians":
        return _RADIUS * _circle(np.arange(8) * (np.pi / 4)), _SPREAD
    share = (np.arange(_NUM_NODES) + 0.5) / _NUM_NODES
    if law == "moons":
        half = 2.0 * (_circle(np.pi * share) - [0.5, 0.25])
    else:
        angle = 1.5 * np.pi * share
        half = 1.5 * np.stack([np.sin(angle), np.cos(angle) - 1.0], axis=1)
    return np.concatenate([half, -half]), _NOISE


def shifted_laws(source: Law, target: Law, num_target: int) -> ShiftedData:
    """Points of the source law to pretrain on, and of the target law to adapt to.

    The draws are always the same: base, target, held-out and fresh points come from generators of their own, and
    ``target`` grows with ``num_target``.

    Raises:
        ValueError: if there is no such law, the two are the same, or there are not so many target points.
    """
    if source == target:
        raise ValueError(f"source and target are both {source}; a shift has two different laws")
    if not 1 <= num_target <= MAX_TARGET:
        raise ValueError(f"num_target is {num_target}; there are 1 to {MAX_TARGET} target points")
    return ShiftedData(
        base=draw(source, np.random.default_rng(0), NUM_BASE),
        target=draw(target, np.random.default_rng(1), MAX_TARGET)[:num_target],
        held_out=draw(target, np.random.default_rng(2), NUM_HELD_OUT),
        fresh=draw(target, np.random.default_rng(3), NUM_HELD_OUT),
    )
