"""Time grids: the flow times between which a sampler with fixed steps goes, for its argument ``times``.

A grid is an array ``[num_steps + 1]``, known at trace time, that begins where the integration starts; any strictly
monotone times in [0, 1] will do. The factories here run from noise (t = 0) to data (t = 1); to go from data to
noise, reverse one: ``cosine(20)[::-1]``.
"""

from collections.abc import Sequence

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gft_jax.sampling.arguments import check_known, checked_count


def uniform(num_steps: int) -> Float[np.ndarray, "num_times"]:
    """Equal steps, ``t_k = k / num_steps``.

    Raises:
        ValueError: for fewer than one step.
    """
    num_steps = checked_count("num_steps", num_steps)
    return np.linspace(0.0, 1.0, num_steps + 1)


def cosine(num_steps: int) -> Float[np.ndarray, "num_times"]:
    """Steps that grow from noise to data, ``t_k = 1 - cos(pi k / (2 num_steps))``.

    The first step is about ``1.2 / num_steps^2`` long, the last about ``1.6 / num_steps``.

    Source: the time schedule of CosyVoice, Du et al., arXiv:2407.05407.

    Raises:
        ValueError: for fewer than one step.
    """
    num_steps = checked_count("num_steps", num_steps)
    # 1 - cos(a) as 2 sin^2(a / 2): the first times keep all their digits.
    times = 2 * np.sin(np.pi / 4 * np.linspace(0.0, 1.0, num_steps + 1)) ** 2
    times[-1] = 1.0
    return times


def shifted(
    times: Sequence[float] | Float[np.ndarray, "num_times"], shift: float
) -> Float[np.ndarray, "num_times"]:
    """A grid moved towards noise (shift > 1) or towards data (shift < 1): ``t -> t / (shift - (shift - 1) t)``.

    This is the shift of Stable Diffusion 3 and Flux, written for t = 0 at noise: in their time, the noise level
    ``tau = 1 - t``, it reads ``tau -> shift tau / (1 + (shift - 1) tau)``. Their values serve here unchanged, e.g. 3
    for images of 1024 x 1024 pixels. The ends stay, and ``shifted(shifted(times, a), b) = shifted(times, a b)``.

    Source: Esser et al., "Scaling rectified flow transformers for high-resolution image synthesis",
    arXiv:2403.03206, eq. 23.

    Args:
        times: any grid in [0, 1].
        shift: positive and finite; 1 changes nothing.

    Raises:
        ValueError: for times outside [0, 1] or not strictly monotone, or a shift out of range, or so far from 1 that
            times can no longer be told apart.
    """
    if not 0 < shift < np.inf:
        raise ValueError(f"shift is {shift}; it must be positive and finite. 1 leaves the grid as it is.")
    grid = checked(times, np.float64)
    # The denominator as a sum of positive numbers: its digits do not cancel, however large the shift.
    moved = grid / (grid + shift * (1 - grid))
    if not np.all(np.diff(moved) * (grid[-1] - grid[0]) > 0):
        raise ValueError(
            f"shift is {shift}; it moves different times of the grid onto one. Take it closer to 1."
        )
    return moved


def resolve(
    times: Sequence[float] | np.ndarray | Array | None,
    t0: float | None,
    t1: float | None,
    num_steps: int | None,
    dtype: DTypeLike,
) -> np.ndarray:
    """The grid that a sampler was asked for: ``times``, or equal steps (100 by default) from t0 to t1 (0 to 1).

    Raises:
        ValueError: for both ways at once, equal ends, times outside [0, 1], traced or not strictly monotone in dtype,
            fewer than one step.
    """
    check_known(t0=t0, t1=t1, num_steps=num_steps)
    if times is not None:
        if (t0, t1, num_steps) != (None, None, None):
            raise ValueError(
                f"times holds the whole grid, with its ends, so give it alone; got t0={t0}, t1={t1} and "
                f"num_steps={num_steps} besides."
            )
        return checked(times, dtype)
    start, end = 0.0 if t0 is None else t0, 1.0 if t1 is None else t1
    if not (0 <= start <= 1 and 0 <= end <= 1) or start == end:
        raise ValueError(f"t0 and t1 must be different times in [0, 1], got t0={start} and t1={end}.")
    count = 100 if num_steps is None else checked_count("num_steps", num_steps)
    return checked(np.linspace(start, end, count + 1), dtype)


def checked(times: Sequence[float] | np.ndarray | Array, dtype: DTypeLike) -> np.ndarray:
    """A grid as an array of a dtype.

    Raises:
        ValueError: unless it holds at least two times, known at trace time, in [0, 1] and strictly monotone in that
            dtype.
    """
    check_known(times=times)
    grid = np.asarray(times, np.float64)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(
            f"times must hold at least two times, shape [num_steps + 1], got shape {grid.shape}."
        )
    if not (grid.min() >= 0 and grid.max() <= 1):
        raise ValueError(f"times must lie in [0, 1], got times from {grid.min()} to {grid.max()}.")
    steps = np.diff(grid.astype(dtype))
    if not ((steps > 0).all() or (steps < 0).all()):
        wrong = int(np.flatnonzero(steps * (grid[-1] - grid[0]) <= 0)[0])
        raise ValueError(
            f"times must be strictly monotone in {np.dtype(dtype)}, got {grid[wrong]} followed by {grid[wrong + 1]} "
            f"at index {wrong} of a grid from {grid[0]} to {grid[-1]}."
        )
    return grid.astype(dtype)
