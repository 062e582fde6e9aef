"""How a number of a report card is found: value, interval, the base's value, and the floor."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from gft_jax.evaluation.contents import Measure
from gft_jax.metrics import confidence_interval, floor
from gft_jax.metrics.resampling import finite_values

LEAST_HALF = 12
"""Rows in a half from which on intervals of means and distances cover about 0.9 or more where they say 0.95: the
simulations are told by `gft_jax.metrics.confidence_interval`."""
NON_NEGATIVE = (0.0, math.inf)


class Comparison(NamedTuple):
    """A metric of two sets of samples, and how its numbers are called."""

    names: tuple[str, ...]
    metric: Callable[[Any, Any], Any]
    """``(x, y)`` -> as many numbers as there are names, or one number."""
    unit: str
    better: str
    bounds: tuple[Any, Any] = (-math.inf, math.inf)
    """Ends of the range of the metric, as `gft_jax.metrics.confidence_interval` takes them."""
    least_half: int | None = LEAST_HALF
    """Rows in a half that an interval needs; None for a metric that is too slow for halves."""


class RealSet(NamedTuple):
    """Real samples in two roles."""

    reference: np.ndarray
    """What generated samples are compared with ``[num, *event]``."""
    pool: np.ndarray
    """Where the sets of a floor are drawn from, at least ``2 num`` rows."""


class Judge(NamedTuple):
    """How intervals and floors are found: the same halves and splits for every metric."""

    key_halves: Key[Array, ""]
    key_floors: Key[Array, ""]
    level: float
    num_halves: int
    num_floors: int

    def compare(
        self,
        group: str,
        comparisons: Sequence[Comparison],
        x: np.ndarray,
        base_x: np.ndarray | None,
        real: RealSet,
        num_evaluations: int,
    ) -> list[Measure]:
        """Measures of generated samples against real ones, by as many rows as there are of these."""
        num = len(real.reference)
        found = []
        for names, metric, unit, better, bounds, least_half in comparisons:
            value, low, high = self._interval(metric, (x[:num], real.reference), bounds, least_half)
            floors = floor(self.key_floors, metric, real.pool, num, num, num_repeats=self.num_floors)
            base = None if base_x is None else np.atleast_1d(metric(base_x[:num], real.reference))
            at_floor = np.atleast_1d(floors.mean(axis=0))
            for i, name in enumerate(names):
                found.append(
                    Measure(
                        group=group,
                        name=name,
                        value=float(value[i]),
                        low=_end(low[i]),
                        high=_end(high[i]),
                        base=None if base is None else float(base[i]),
                        floor=float(at_floor[i]),
                        num_evaluations=num_evaluations,
                        unit=unit,
                        better=better,
                    )
                )
        return found

    def of_rows(
        self,
        group: str,
        name: str,
        rows: np.ndarray,
        base_rows: np.ndarray | None,
        num_evaluations: int,
        unit: str,
        statistic: Callable[[np.ndarray], Any] = np.mean,
        bounds: tuple[float, float] = NON_NEGATIVE,
        better: str = "lower",
    ) -> Measure:
        """A statistic over samples of what each has for itself: a number, or an array."""
        value, low, high = self._interval(statistic, (rows,), bounds, LEAST_HALF)
        return Measure(
            group=group,
            name=name,
            value=float(value[0]),
            low=_end(low[0]),
            high=_end(high[0]),
            base=None if base_rows is None else float(statistic(base_rows)),
            floor=None,
            num_evaluations=num_evaluations,
            unit=unit,
            better=better,
        )

    def _interval(
        self,
        metric: Callable[..., Any],
        samples: tuple[np.ndarray, ...],
        bounds: tuple[Any, Any],
        least_half: int | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values and the ends of their intervals; nan where there is none."""
        if least_half is None or min(map(len, samples)) // 2 < least_half:
            value = np.atleast_1d(finite_values("the samples", [metric(*samples)])[0])
            return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
        interval = confidence_interval(
            self.key_halves,
            metric,
            *samples,
            level=self.level,
            num_halves=self.num_halves,
            bounds=bounds,
        )
        value, low, high = (np.atleast_1d(field) for field in interval[:3])
        return value, low, high


def _end(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
