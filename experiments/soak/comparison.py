"""Two runs side by side: their last states, the parameters that they kept, and their logs."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gft_jax as gft
from experiments.configs.settings import Settings
from experiments.workbench import Workbench
from gft_jax.checkpoints import Checkpoints

Rows = Sequence[Mapping[str, Any]]

_NOT_COMPARED = ("timing", "preempted")
"""Rows of times, and of the interruptions themselves."""


def rows_of(log: Path) -> list[dict[str, Any]]:
    """The whole rows of a log; none where there is no log yet."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def row_errors(ours: Rows, theirs: Rows) -> tuple[list[str], float]:
    """What is wrong with the rows of an interrupted run, and how far its numbers are from those of the other.

    Args:
        ours: of the interrupted run.
        theirs: of the uninterrupted one.

    Returns:
        Rows that are missing, too many or in another order, a sentence each; and the largest relative difference of
        two numbers of one row, with differences below 1e-3 of the largest number of this name in the log taken
        relative to that.
    """
    ours, theirs = ([row for row in rows if row["kind"] not in _NOT_COMPARED] for rows in (ours, theirs))
    names, expected = ([_name(row) for row in rows] for rows in (ours, theirs))
    counts, wanted = Counter(names), set(expected)
    errors = [f"row {name} is there {count} times" for name, count in counts.items() if count > 1]
    errors += [f"row {name} is missing" for name in expected if name not in counts]
    errors += [f"row {name} is too many" for name in counts if name not in wanted]
    if not errors and names != expected:
        errors.append("the rows are in another order")
    if errors:
        return errors, float("nan")
    scales: dict[tuple[str, str], float] = {}
    for row in theirs:
        for key, value in _numbers(row):
            scales[row["kind"], key] = max(scales.get((row["kind"], key), 0.0), abs(value))
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        for key, value in _numbers(other):
            scale = max(abs(value), 1e-3 * scales[other["kind"], key])
            if value != one[key]:
                worst = max(worst, abs(value - one[key]) / scale)
    return errors, worst


def state_distance(ours: Path, theirs: Path, settings: Settings) -> float:
    """Largest difference of the last states of two runs, and of the parameters they kept.

    Of each leaf, relative to its largest entry; 0.0 means that they agree bit for bit.

    Raises:
        ValueError: if a run has not come to its last step.
    """
    pairs = zip(_arrays(ours, settings), _arrays(theirs, settings), strict=True)
    return max(_distance(one, other) for one, other in pairs)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    if one.dtype != other.dtype or one.shape != other.shape:
        raise ValueError(
            f"a leaf is {one.dtype}{one.shape} in one run and {other.dtype}{other.shape} in the other"
        )
    if one.tobytes() == other.tobytes():
        return 0.0
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
    return max(float(difference / max(np.abs(other).max(), 1e-6)), np.finfo(np.float64).tiny)


def _arrays(run: Path, settings: Settings) -> Iterator[np.ndarray]:
    bench = Workbench(settings, settings.data())
    base_params = bench.fresh_params(0)
    for method in settings.methods:
        like = bench.runner(method).init(jax.random.key(0), base_params)
        for seed in settings.seeds:
            with Checkpoints(run / "checkpoints" / f"{method}-seed{seed}") as checkpoints:
                if checkpoints.latest_step() != settings.steps:
                    raise ValueError(f"{run} has not come to step {settings.steps} of {method}, seed {seed}")
                state, _ = checkpoints.restore(like)
            kept = [gft.load(run, method, seed, averaged=averaged).params for averaged in (False, True)]
            yield from map(np.asarray, jax.tree.leaves((state, kept)))


def _name(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("kind", "method", "seed", "step"))


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, int | float) and key not in ("seed", "step", "best_step"):
            yield key, float(value)
