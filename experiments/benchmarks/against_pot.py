"""Couplings of two sets of points in the plane beside POT's exact solver: normal noise and two moons.

The library's time is that of the whole coupling, from the points to the pairs, in float32; POT's is that of ``ot.emd``
alone, on a matrix of costs that is ready, in float64. Both may use all cores; POT's solver runs on one.
"""

import sys
from collections.abc import Sequence

import jax
import numpy as np
import ot  # pyright: ignore[reportMissingImports]

import gft_jax as gft
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.benchmarks.pairing import ends
from gft_jax.couplings import Coupling

TITLE = "Pairs of points in the plane: POT's exact solver over the library's couplings"
ASKED = {256: 1.6, 1024: 1.8}
"""How many times as fast as POT Sinkhorn is to be, by rows, at an L1 error of the marginals of 2e-3 at most."""
MAX_ERROR = 2e-3
EPSILONS = (0.05, 0.01)
MAX_ROWS = 4096
"""Above which exact solutions would take minutes."""


def measure(rows: Sequence[int], rounds: int) -> list[Outcome]:
    """POT's time over that of Sinkhorn's coupling at two epsilons, and of the exact one, at numbers of rows.

    Raises:
        ValueError: for numbers of rows that are too small, or too large for dense matrices; for a plan whose marginals
            are not as close as `MAX_ERROR`, or where the exact costs differ.
    """
    if min(rows) < 2 or max(rows) > MAX_ROWS:
        raise ValueError(f"pot takes --widths, numbers of rows from 2 to {MAX_ROWS}, got {tuple(rows)}")
    outcomes = []
    for num in rows:
        print(f"measuring {num} rows", file=sys.stderr)
        x0, x1 = ends(num)
        matrix = ot.dist(x1.astype(np.float64), x0.astype(np.float64))
        weights = np.full(num, 1 / num)

        def solved(matrix: np.ndarray = matrix, weights: np.ndarray = weights) -> np.ndarray:
            return ot.emd(weights, weights, matrix)

        optimal = float(np.sum(solved() * matrix))
        couplings: dict[str, Coupling] = {f"epsilon {e:g}": gft.couplings.sinkhorn(e) for e in EPSILONS}
        couplings["exact"] = gft.couplings.exact()
        entrants = {"POT": Entrant(lambda solved=solved: solved(), 1)}
        settings = {}
        for name, coupling in couplings.items():
            program = jax.jit(coupling)
            pairing = gft.couplings.require_converged(program(jax.random.key(0), x0, x1))
            error, cost = float(pairing.marginal_error), float(pairing.cost) / optimal
            if error > MAX_ERROR or (name == "exact" and abs(cost - 1) > 1e-4):
                raise ValueError(
                    f"nothing is measured: {name} has marginal error {error:.2g}, cost {cost:.4f} of POT's"
                )
            settings[name] = f"{num} rows, {name}: L1 error {error:.1e}, cost {cost:.3f} of the optimal one"
            entrants[name] = Entrant(
                lambda program=program, x0=x0, x1=x1: jax.block_until_ready(
                    program(jax.random.key(0), x0, x1)
                ),
                1,
            )
        seconds = seconds_per_step(entrants, rounds_at(num, rounds))
        for name in couplings:
            asked = ASKED.get(num) if name == f"epsilon {EPSILONS[0]:g}" else None
            outcomes.append(
                compare(settings[name], Comparison("POT / library", "POT", name, at_least=asked), seconds)
            )
    return outcomes
