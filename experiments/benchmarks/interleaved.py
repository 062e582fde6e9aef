"""Times of several programs measured side by side, so that what else the machine does falls on all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Entrant(NamedTuple):
    """A program that takes a block of steps."""

    run: Callable[[], object]
    """Takes the steps, and returns when their results are there."""
    steps: int
    """Number of steps in the block."""


class Comparison(NamedTuple):
    """The ratio of two entrants' times, and what is asked of it."""

    name: str
    """What is compared."""
    numerator: str
    """Name of the entrant whose time is divided."""
    denominator: str
    """Name of the entrant by whose time it is divided."""
    at_most: float | None = None
    """Largest median ratio that meets the bar."""
    at_least: float | None = None
    """Smallest median ratio that meets the bar."""


class Outcome(NamedTuple):
    """What was measured for a comparison."""

    setting: str
    """Where it was measured, such as "width 64"."""
    comparison: Comparison
    """What was compared."""
    quartiles: tuple[float, float, float]
    """Lower quartile, median and upper quartile of the ratio, over the rounds."""
    milliseconds: tuple[float, float]
    """Median time of a step of the numerator and of the denominator."""

    def met(self) -> bool | None:
        """Whether the median meets the bar; None where there is none."""
        median, (_, _, _, at_most, at_least) = self.quartiles[1], self.comparison
        if at_most is None and at_least is None:
            return None
        return (at_most is None or median <= at_most) and (at_least is None or median >= at_least)


def seconds_per_step(
    entrants: Mapping[str, Entrant],
    rounds: int,
    warm_ups: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Time of a step of each entrant in each round: arrays ``[rounds]`` in seconds.

    In a round all entrants run one block each, one after another, in an order that is drawn anew (seed 0), so that none
    always follows the same other one.

    Args:
        entrants: the programs by name.
        rounds: number of rounds, >= 1.
        warm_ups: blocks that each entrant takes first, unmeasured: the first one compiles.
        clock: seconds since any moment.

    Raises:
        ValueError: if ``rounds`` < 1.
    """
    if rounds < 1:
        raise ValueError(f"a measurement needs rounds >= 1, got {rounds}")
    for entrant in entrants.values():
        for _ in range(warm_ups):
            entrant.run()
    seconds = {name: np.empty(rounds) for name in entrants}
    generator = np.random.default_rng(0)
    for number in range(rounds):
        for name in generator.permutation(list(entrants)).tolist():
            started = clock()
            entrants[name].run()
            seconds[name][number] = (clock() - started) / entrants[name].steps
    return seconds


def rounds_at(width: int, rounds: int) -> int:
    """More rounds where they are short, since an interruption then weighs more: ``rounds`` at width 256 and above."""
    return rounds * max(1, 256 // width)


def compare(setting: str, comparison: Comparison, seconds: Mapping[str, np.ndarray]) -> Outcome:
    """Quartiles of the ratio of two entrants, taken round by round.

    Args:
        setting: where it was measured.
        comparison: which entrants.
        seconds: what `seconds_per_step` returned.
    """
    numerator, denominator = seconds[comparison.numerator], seconds[comparison.denominator]
    lower, median, upper = np.quantile(numerator / denominator, (0.25, 0.5, 0.75)).tolist()
    milliseconds = (1e3 * float(np.median(numerator)), 1e3 * float(np.median(denominator)))
    return Outcome(setting, comparison, (lower, median, upper), milliseconds)
