"""How a number of a report card is found: value, interval, the base's value, and the floor."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from gft_jax.evaluation.contents import Measure
from gft_jax.metrics import confidence_interval, floor


class Comparison(NamedTuple):
    """A metric of two sets of samples, and how its numbers are called."""

    names: tuple[str, ...]
    metric: Callable[[Any, Any], Any]
    """``(x, y)`` -> as many numbers as there are names, or one number."""
    unit: str
    better: str


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
        for names, metric, unit, better in comparisons:
            interval = confidence_interval(
                self.key_halves,
                metric,
                x[:num],
                real.reference,
                level=self.level,
                num_halves=self.num_halves,
            )
            floors = floor(self.key_floors, metric, real.pool, num, num, num_repeats=self.num_floors)
            base = None if base_x is None else np.atleast_1d(metric(base_x[:num], real.reference))
            at_floor = np.atleast_1d(floors.mean(axis=0))
            value, low, high = (np.atleast_1d(field) for field in interval[:3])
            for i, name in enumerate(names):
                found.append(
                    Measure(
                        group=group,
                        name=name,
                        value=float(value[i]),
                        low=float(low[i]),
                        high=float(high[i]),
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
    ) -> Measure:
        """A statistic over samples of a number that each has for itself; lower is better."""
        interval = confidence_interval(
            self.key_halves, statistic, rows, level=self.level, num_halves=self.num_halves
        )
        return Measure(
            group=group,
            name=name,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            base=None if base_rows is None else float(statistic(base_rows)),
            floor=None,
            num_evaluations=num_evaluations,
            unit=unit,
            better="lower",
        )
