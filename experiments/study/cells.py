"""Numbers of a study as text."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.study.measures import MEASURES
from experiments.study.paired import Difference

_MOST_DECIMALS = 6
_ARROWS = {"lower": " ↓", "higher": " ↑", "closer to -1": " → -1"}


def title(key: str) -> str:
    """Heading of a measure, with an arrow in the direction that is better."""
    return MEASURES[key].title + _ARROWS.get(MEASURES[key].better, "")


def header(first: str, titles: Sequence[str]) -> list[str]:
    """The two first lines of a table in Markdown."""
    return [f"| {first} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]


def number(value: float | None, key: str, decimals: int | None = None) -> str:
    """A measure as it is printed; a dash for what is absent or not finite."""
    if value is None or not np.isfinite(value):
        return "-"
    column = MEASURES[key]
    return f"{value * column.scale:.{column.decimals if decimals is None else decimals}f}"


def spread(values: Mapping[int, float], key: str, planned: int | None = None) -> str:
    """Mean and sample standard deviation over seeds, and their number where it is not the planned one."""
    found = list(values.values())
    if not found:
        return "-"
    text = number(float(np.mean(found)), key)
    if len(found) > 1:
        text += f" ± {number(float(np.std(found, ddof=1)), key)}"
    return text if planned in (None, len(found)) else f"{text} (n = {len(found)})"


def quartiles(values: Mapping[int, float], key: str) -> str:
    """Median and quartiles over seeds."""
    if not values:
        return "-"
    low, middle, high = np.quantile(list(values.values()), (0.25, 0.5, 0.75)).tolist()
    return f"{number(middle, key)} ({number(low, key)} to {number(high, key)})"


def interval(difference: Difference | None, key: str, planned: int | None = None) -> str:
    """Mean difference and its interval, with decimals enough to tell its ends from zero."""
    if difference is None:
        return "-"
    mean, low, high, n = difference
    few = "" if planned in (None, n) else f" (n = {n})"
    if low is None or high is None:
        return number(mean, key) + few
    decimals = MEASURES[key].decimals
    while difference.sign and decimals < _MOST_DECIMALS and _vanishes(low, high, key, decimals):
        decimals += 1
    parts = (number(value, key, decimals) for value in (mean, low, high))
    return "{} [{}, {}]".format(*parts) + few


def _vanishes(low: float, high: float, key: str, decimals: int) -> bool:
    nearest = min(abs(low), abs(high)) * MEASURES[key].scale
    return round(nearest, decimals) == 0.0


def verdict(difference: Difference | None) -> str:
    """What the interval says; nothing where there is none."""
    sign = None if difference is None else difference.sign
    return {-1: "**lower**", 0: "not decided", 1: "**higher**", None: ""}[sign]
