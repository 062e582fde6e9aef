"""Sample quality against the number of evaluations that the samples cost."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import numpy as np
from jaxtyping import Array, Key

from gft_jax.conditions import check_rows
from gft_jax.drifts.two_times import check_two_times
from gft_jax.evaluation.arguments import Samples, check_count
from gft_jax.evaluation.solves import failure, solve, solver_name
from gft_jax.metrics import energy_distance, w2
from gft_jax.metrics.resampling import generator
from gft_jax.metrics.rows import check_array, flat_pair, flat_rows
from gft_jax.sampling import AverageSample, OdeSample, sample_average, time_grids
from gft_jax.sampling.steps import evaluations_per_step
from gft_jax.types import Drift, TwoTimeDrift

AVERAGE_VELOCITY = "average velocity"
"""What stands for the solver where samples are by steps of an average velocity."""

TimeGrid = Callable[[int], np.ndarray]
"""Number of steps -> flow times ``[num_steps + 1]``, such as those of `gft_jax.sampling.time_grids`."""


class NfePoint(NamedTuple):
    """Samples of one solver with one number of steps."""

    solver: str
    """Name of the solver, or `AVERAGE_VELOCITY`."""
    num_steps: int
    """Steps taken."""
    num_evaluations: int
    """Evaluations of the drift (NFE)."""
    w2: float | None
    """Root Wasserstein-2 distance to the data; None where the solve failed."""
    energy_distance: float | None
    """Energy distance to the data; None where the solve failed."""
    failure: str | None
    """None, or in what the solve failed."""


class NfeCurve(NamedTuple):
    """Quality against evaluations, and what real samples would score."""

    points: tuple[NfePoint, ...]
    """Solvers in the order given and after them the average velocity, and numbers of steps in the order given within
    each."""
    floor_w2: float
    """W2 of other real samples to the same data."""
    floor_energy_distance: float
    """Their energy distance; unbiased, so about 0 and sometimes below."""
    num_samples: int
    """Number of generated samples, and of real ones, in each distance."""


def nfe_curve(
    drift: Drift,
    params: Any,
    x0: Samples,
    data: Samples,
    solvers: Sequence[diffrax.AbstractSolver],
    num_steps: Sequence[int],
    *,
    key: Key[Array, ""] | None = None,
    fresh: Samples | None = None,
    cond: Any = None,
    time_grid: TimeGrid = time_grids.uniform,
    chunk_size: int | None = None,
    average: TwoTimeDrift | None = None,
) -> NfeCurve:
    """Distances of samples to data, for solvers and numbers of steps, beside the evaluations that each has cost.

    All points start at the same source rows and are held against the same real ones, so that they differ by the
    solver alone. ``num`` samples are compared with ``num`` real ones, and the floor with ``num`` others, where num is
    the largest number for which there are rows: ``min(len(x0), len(data) // 2)``, or with ``fresh``
    ``min(len(x0), len(data), len(fresh))``.

    Bias: W2 is above the distance of the laws, by about as much as its floor is above 0; the energy distance has
    none (see `gft_jax.metrics`). The floor is one pair of real sets; `gft_jax.metrics.floor` has the mean over many.

    With an average velocity there are points of `gft_jax.sampling.sample_average` besides, by the same numbers of
    steps, each of one evaluation; their solver is called ``average velocity``.

    A solve that fails, or ends so far out that squares overflow, is a point with its ``failure`` and without
    distances; no other is touched. Each combination is a program of its own to compile, about half a second.

    Args:
        drift: the velocity field.
        params: its parameters.
        x0: source samples ``[num_x0, *event]``; the first num are used.
        data: real samples ``[num_data, *event]`` that the drift was not trained on.
        solvers: solvers of Diffrax that `gft_jax.sampling.sample_ode` takes, each once.
        num_steps: numbers of steps, >= 1, each once.
        key: draws which rows of data (and fresh) are used; None for the first ones, which must then be in random order.
        fresh: further real samples, for the floor alone.
        cond: conditions of the rows of x0: a pytree of ``[num_x0, ...]``, or None.
        time_grid: flow times by number of steps.
        chunk_size: see `gft_jax.sampling.sample_ode`.
        average: the average velocity whose velocity ``drift`` is (`gft_jax.drifts.instantaneous`), of the same
            parameters; None for none.

    Raises:
        ValueError: for no solvers or steps, one of them twice or out of range, a grid that does not run from noise to
            data in as many steps; different events; fewer than two samples, or two for the floor; samples, source
            rows among them, that are not finite; conditions that are not one for each source row; an average velocity
            without a second time.
    """
    grids = checked_grids(solvers, num_steps, time_grid)
    if average is not None:
        check_two_times(average)
    check_array("x0", x0, "[num, *event]")
    # Half of the data are for the floor, if nothing else is.
    for name, rows, least in (("x0", x0, 2), ("data", data, 4 if fresh is None else 2), ("fresh", fresh, 2)):
        if rows is not None:
            flat_rows(name, rows, least)
            flat_pair(rows, data, least=1)
    check_rows("cond", cond, len(x0))
    num = min(len(x0), len(data) // 2) if fresh is None else min(len(x0), len(data), len(fresh))
    real = np.asarray(data)
    random = None if key is None else generator(key)
    order = np.arange(len(real)) if random is None else random.permutation(len(real))
    reference = real[order[:num]]
    if fresh is None:
        others = real[order[num : 2 * num]]
    else:
        others = np.asarray(fresh)
        others = others[:num] if random is None else others[random.permutation(len(others))[:num]]
    rows, row_cond = jax.tree.map(lambda leaf: leaf[:num], (x0, cond))
    points = curve_points(drift, params, rows, reference, solvers, grids, row_cond, chunk_size, average)
    return NfeCurve(points, w2(others, reference), energy_distance(others, reference), num)


def curve_points(
    drift: Drift,
    params: Any,
    x0: Samples,
    reference: np.ndarray,
    solvers: Sequence[diffrax.AbstractSolver],
    grids: dict[int, np.ndarray],
    cond: Any,
    chunk_size: int | None,
    average: TwoTimeDrift | None,
) -> tuple[NfePoint, ...]:
    """Points of `nfe_curve`, from as many source rows as there are real ones."""

    def point(name: str, count: int, sample: OdeSample | AverageSample) -> NfePoint:
        failed = failure(sample)
        x = np.asarray(sample.x)
        return NfePoint(
            name,
            count,
            int(np.max(sample.num_evaluations)),
            w2(x, reference) if failed is None else None,
            energy_distance(x, reference) if failed is None else None,
            failed,
        )

    points = [
        point(solver_name(solver), count, solve(drift, params, x0, cond, grid, solver, chunk_size))
        for solver in solvers
        for count, grid in grids.items()
    ]
    if average is not None:
        for count, grid in grids.items():
            sample = sample_average(average, params, x0, cond=cond, times=grid, chunk_size=chunk_size)
            points.append(point(AVERAGE_VELOCITY, count, sample))
    return tuple(points)


def checked_grids(
    solvers: Sequence[diffrax.AbstractSolver], num_steps: Sequence[int], time_grid: TimeGrid
) -> dict[int, np.ndarray]:
    """The grid for each number of steps.

    Raises:
        ValueError: as `nfe_curve`.
    """
    for name, values in (("solvers", solvers), ("num_steps", num_steps)):
        if not hasattr(values, "__len__"):
            raise ValueError(f"the {name} of a curve are a list, if only of one, got {values!r}")
    if len(solvers) == 0 or len(num_steps) == 0:
        raise ValueError(
            f"give one or more solvers and numbers of steps, got {len(solvers)} and {len(num_steps)}"
        )
    names = [solver_name(solver) for solver in solvers]
    for solver in solvers:
        evaluations_per_step(solver)
    for name, values in (("solver", names), ("num_steps", list(num_steps))):
        if len(set(values)) < len(values):
            raise ValueError(f"each {name} is wanted once, got {values}")
    grids = {}
    for count in num_steps:
        check_count("num_steps", count, 1)
        grids[count] = time_grids.checked(time_grid(count), np.float64)
        if len(grids[count]) != count + 1 or grids[count][0] > grids[count][-1]:
            raise ValueError(
                f"time_grid must give num_steps + 1 times from noise to data, got {len(grids[count])} times from "
                f"{grids[count][0]} to {grids[count][-1]} for num_steps = {count}"
            )
    return grids
