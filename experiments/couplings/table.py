"""What the tables of all comparisons share: their columns, and intervals over the seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Column(NamedTuple):
    """A number of a table."""

    name: str
    title: str
    digits: int


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of normal values; None for a single one."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values) - half), float(np.mean(values) + half)


def between(ends: tuple[float, float] | None, digits: int) -> str:
    """Both ends of a range, or nothing."""
    return "" if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
