"""Time and peak memory of distances between two sets of points in the plane, each in a process of its own.

The process has made its points and has called the metric once on 100 of each, so that what imports and small programs
take is there; then it calls the metric on all. The peak is Linux's own mark of the largest resident memory of the
process, ``VmHWM`` in ``/proc/self/status`` (``ru_maxrss`` would start at that of the process that started this one);
what the call adds is the peak less the resident memory before the call.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.datasets import make_moons

from gft_jax import metrics

HEAD = ("distance", "seconds", "MiB added", "MiB of the process", "what is held at once")
_WARM_UP = 100
_ROOT = Path(__file__).parents[2]
_STATUS = Path("/proc/self/status")


class Distance(NamedTuple):
    """A metric, and what of the num_x times num_y pairs it holds."""

    call: Callable[[np.ndarray, np.ndarray], float]
    """(x, y) -> its value."""
    held: str
    """What it holds at once."""


def _sinkhorn(x: np.ndarray, y: np.ndarray) -> float:
    found = metrics.sinkhorn_divergence(x, y)
    if not found.converged:
        raise ValueError(
            f"the Sinkhorn divergence has not converged: marginal error {found.marginal_error:g}"
        )
    return found.value


DISTANCES = {
    "Sinkhorn divergence": Distance(_sinkhorn, "a cost matrix, whole, and as much again, in float32"),
    "exact W2": Distance(metrics.w2, "the cost matrix, whole, in float64"),
    "sliced W2": Distance(lambda x, y: metrics.sliced_w2(jax.random.key(0), x, y), "32 of 1000 directions"),
    "energy distance": Distance(metrics.energy_distance, "1024 rows of a distance matrix"),
    "MMD": Distance(
        metrics.squared_mmd, "for the median all distances within y, then 1024 rows of a kernel matrix"
    ),
    "MMD, bandwidth given": Distance(
        lambda x, y: metrics.squared_mmd(x, y, metrics.gaussian_kernel(1.0)), "1024 rows of a kernel matrix"
    ),
    "prdc": Distance(lambda x, y: metrics.prdc(x, y).coverage, "1024 rows of a distance matrix"),
}


class Cost(NamedTuple):
    """What one call took."""

    distance: str
    """Which of `DISTANCES`."""
    value: float
    """Its value."""
    seconds: float
    """Time of the call; the compilation for this many points is in it."""
    added: float
    """Peak of the resident memory in the call, above that before it, in MiB."""
    peak: float
    """Peak of the resident memory of the whole process, in MiB."""


def points(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of points ``[num, 2]`` in float32: noisier moons, as a model may draw them, and moons."""
    x, y = (
        np.asarray(make_moons(num, noise=noise, random_state=seed)[0], np.float32)
        for seed, noise in enumerate((0.1, 0.05))
    )
    return x, y


def cost(distance: str, num: int) -> Cost:
    """What one call takes; right where nothing in this process has ever held more memory than the call."""
    call, (x, y) = DISTANCES[distance].call, points(num)
    call(x[:_WARM_UP], y[:_WARM_UP])
    before, started = _resident("VmRSS"), time.perf_counter()
    value = call(x, y)
    seconds, peak = time.perf_counter() - started, _resident("VmHWM")
    return Cost(distance, value, seconds, peak - before, peak)


def measure(distances: Sequence[str], num: int) -> list[Cost]:
    """The costs, one process after another.

    Raises:
        ValueError: for too few points, where there is no ``/proc``, or if a process fails.
    """
    if num <= _WARM_UP:
        raise ValueError(f"--points must be above {_WARM_UP}, got {num}")
    if not _STATUS.exists():
        raise ValueError(f"peak memory is read from {_STATUS}, which there is on Linux alone: run this there")
    costs = []
    for distance in distances:
        print(f"measuring {distance}", file=sys.stderr)
        command = [sys.executable, "-m", __name__, distance, str(num)]
        process = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if process.returncode:
            raise ValueError(
                f"the process of {distance} ended with status {process.returncode}:\n{process.stderr}"
            )
        costs.append(Cost(**json.loads(process.stdout)))
    return costs


def cells(cost: Cost) -> list[str]:
    """A row below `HEAD`."""
    numbers = [f"{cost.seconds:.1f}", f"{cost.added:.0f}", f"{cost.peak:.0f}"]
    return [cost.distance, *numbers, DISTANCES[cost.distance].held]


def _resident(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process in MiB."""
    found: Any = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(cost(sys.argv[1], int(sys.argv[2]))._asdict()))
