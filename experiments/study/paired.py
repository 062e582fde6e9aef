"""Paired comparison of two methods over seeds."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

NUM_RESAMPLES = 10_000
LEVEL = 0.95
FEWEST = 3
"""With fewer pairs there is no interval: resampling two numbers says nothing."""


class Difference(NamedTuple):
    """Mean over seeds of one method's number minus another's on the same seed, with its bootstrap interval."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval; None with fewer than three pairs."""
    high: float | None
    """Upper end."""
    n: int
    """Number of pairs."""

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies on one side of zero, 0 where it does not or there is none."""
        if self.low is None or self.high is None:
            return 0
        return -1 if self.high < 0.0 else int(self.low > 0.0)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """``mean(ours - theirs)`` over the seeds that both have, with the percentile interval of 10,000 resamples.

    Args:
        ours: number by seed.
        theirs: likewise; seeds that only one of the two has are left out.

    Returns:
        None if there is no seed in common, or a number is not finite.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    values = np.array([ours[seed] - theirs[seed] for seed in seeds], dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return None
    mean = float(values.mean())
    if len(values) < FEWEST:
        return Difference(mean, None, None, len(values))
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high), len(values))
