"""What a pairing costs, by the number of rows that are coupled at once: normal noise and two moons in the plane."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.datasets import make_moons

import gft_jax as gft
from gft_jax.couplings import Coupling

HEAD = ("rows", "coupling", "ms", "quartiles", "µs a row", "marginal error (L1)", "cost / optimal", "excess")
ROWS = (64, 256, 1024, 2048, 4096, 8192)
MAX_EXACT = 4096
"""Rows above which the exact coupling would take minutes, and the cost is compared with Sinkhorn's at 0.01."""

COUPLINGS: dict[str, tuple[Callable[[], Coupling], int]] = {
    "independent": (gft.couplings.independent, max(ROWS)),
    "exact": (gft.couplings.exact, MAX_EXACT),
    "sinkhorn, epsilon 0.05": (gft.couplings.sinkhorn, max(ROWS)),
    "sinkhorn, epsilon 0.01": (lambda: gft.couplings.sinkhorn(0.01), max(ROWS)),
    "one-to-one, epsilon 0.01": (
        lambda: gft.couplings.sinkhorn(0.01, rounding=gft.couplings.one_to_one),
        max(ROWS),
    ),
    "unbalanced, epsilon 0.05": (gft.couplings.unbalanced, max(ROWS)),
}
"""How each is made, and the largest number of rows it is measured at."""


class Cost(NamedTuple):
    """What pairings of one size took."""

    rows: int
    coupling: str
    milliseconds: tuple[float, float, float]
    """Lower quartile, median and upper quartile."""
    marginal_error: float
    cost: float
    """Mean squared distance of the pairs."""
    optimal: float
    """The same of the optimal ones."""
    independent: float
    """The same of random ones."""


def ends(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise and data ``[num, 2]``, float32: standard normal, and moons of twice the usual size."""
    x0 = np.random.default_rng(0).normal(size=(num, 2)).astype(np.float32)
    return x0, 2 * np.asarray(make_moons(num, noise=0.05, random_state=0)[0], np.float32)


def measure(rows: Sequence[int], rounds: int) -> list[Cost]:
    """Times of all couplings at all numbers of rows, compiled, in rounds of all couplings one after another.

    Raises:
        ValueError: if a coupling does not converge.
    """
    costs = []
    for num in rows:
        print(f"measuring {num} rows", file=sys.stderr)
        x0, x1 = ends(num)
        programs = {name: jax.jit(make()) for name, (make, most) in COUPLINGS.items() if num <= most}
        key = jax.random.key(0)
        pairings = {
            name: gft.couplings.require_converged(program(key, x0, x1)) for name, program in programs.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, program in programs.items():
                started = time.perf_counter()
                jax.block_until_ready(program(key, x0, x1))
                seconds[name].append(time.perf_counter() - started)
        optimal = pairings["exact" if num <= MAX_EXACT else "sinkhorn, epsilon 0.01"].cost
        independent = float(np.sum((x0.mean(0) - x1.mean(0)) ** 2) + np.sum(x0.var(0) + x1.var(0)))
        for name, pairing in pairings.items():
            lower, median, upper = (1e3 * np.quantile(seconds[name], (0.25, 0.5, 0.75))).tolist()
            cost = independent if name == "independent" else float(pairing.cost)
            numbers = float(pairing.marginal_error), cost, float(optimal), independent
            costs.append(Cost(num, name, (lower, median, upper), *numbers))
    return costs


def cells(cost: Cost) -> list[str]:
    """A row below `HEAD`."""
    lower, median, upper = cost.milliseconds
    excess = (cost.cost - cost.optimal) / (cost.independent - cost.optimal)
    mark = "" if cost.rows <= MAX_EXACT else " *"
    return [
        str(cost.rows),
        cost.coupling,
        f"{median:.3g}",
        f"{lower:.3g} - {upper:.3g}",
        f"{1e3 * median / cost.rows:.3g}",
        f"{cost.marginal_error:.1e}",
        f"{cost.cost / cost.optimal:.3f}{mark}",
        f"{excess:.3f}{mark}",
    ]


def facts(rounds: int) -> dict[str, Any]:
    """What the table is to be read with."""
    return {"rounds": rounds, "*": "against sinkhorn at 0.01, since the exact one would take minutes"}
