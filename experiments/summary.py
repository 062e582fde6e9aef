"""The table of a run: numbers per method from ``metrics.jsonl`` alone, with their spread over seeds."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gft_jax.metrics import instantaneous_variance, spearman

Record = dict[str, Any]
"""One line of ``metrics.jsonl``."""

Number = Callable[[list[Record]], float | None]
"""Records of one seed -> a number of that seed, None where they do not hold it."""

NAMES = {"base": "base (step 0)", "floor": "real data (floor)"}
"""How rows that are no methods are called."""

_REQUIRED = {
    "train": ("method", "seed", "step"),
    "evaluation": ("method", "seed", "step"),
    "floor": ("seed",),
    "timing": ("method", "seed", "seconds", "steps"),
}


class Column(NamedTuple):
    """A column of the table: how it is called, read and printed."""

    key: str
    """Name in ``summary.json`` and ``summary.csv``."""
    heading: str
    """Short heading for a terminal."""
    title: str
    """Heading on a page."""
    group: str
    """What the column tells about."""
    better: str
    """Which direction is better."""
    decimals: int
    scale: float
    """Printed number = value times scale; files hold the value itself."""
    meaning: str
    """One or two sentences for the reader of the report."""
    number: Number | None = None
    """How it is read from the evaluations; None for one of `COLUMNS`, or the last evaluation's entry of its key."""


_QUALITY, _PATHS, _KEPT = "Sample quality", "Paths", "What is kept"
_STABILITY, _COST = "Stability of convergence", "Cost"

# fmt: off
COLUMNS = (
    Column("final_w2", "W2", "W₂", _QUALITY, "lower", 3, 1,
           "Exact 2-Wasserstein distance (the root) between generated and held-out samples at the last evaluation."),
    Column("best_w2", "best W2", "best W₂", _QUALITY, "lower", 3, 1,
           "Smallest W₂ of all evaluations, step 0 included. It is picked with hindsight, by the very "
           "samples that score it, so it flatters curves that fluctuate."),
    Column("early_stopped_w2", "stopped W2", "early-stopped W₂", _QUALITY, "lower", 3, 1,
           "W₂ at the evaluation whose samples are closest to the training data by energy distance: "
           "early stopping without a look at the held-out data."),
    Column("energy_distance", "energy", "energy distance", _QUALITY, "lower", 4, 1,
           "Energy distance between generated and held-out samples at the last evaluation."),
    Column("path_length", "path length", "path length", _PATHS, "lower", 3, 1,
           "Mean length of the sampling trajectories from noise to data at the last evaluation (Euclidean "
           "norm). At equal sample quality, shorter means straighter."),
    Column("one_step_w2", "1-step W2", "one-step W₂", _PATHS, "lower", 3, 1,
           "W₂ at the last evaluation of samples made in one step: of Euler's method, or of the average velocity where "
           "a method learns one."),
    Column("retention", "drift change", "distance to base drift", _KEPT, "lower", 3, 1,
           "Root mean squared distance between the drift and the base's, on the base's own sampling paths: zero for "
           "the base itself. Moving away is what fine-tuning is for; moving further than needed is forgetting."),
    Column("path_kl", "path KL", "path KL", _KEPT, "lower", 2, 1,
           "Relative entropy KL(P ‖ P_base), in nats, at the last evaluation. P is the law of the paths of the "
           "memoryless SDE made of the drift, P_base that of the base: zero for the base itself. A mean over 32 paths, "
           "always of the same noise; it grows with the number of sampling steps, slowly."),
    Column("diversity", "diversity", "diversity", _KEPT, "as real data", 3, 1,
           "Mean distance of two samples."),
    Column("spearman_w2", "rho(W2)", "Spearman, W₂", _STABILITY, "closer to -1", 2, 1,
           "Spearman rank correlation of training step and W₂ over all evaluations: -1 is a curve that only "
           "falls. Compare methods that start from the same parameters."),
    Column("spearman_energy_distance", "rho(energy)", "Spearman, energy", _STABILITY, "closer to -1", 2, 1,
           "The same rank correlation for the energy distance."),
    Column("variance_of_w2_increments", "var dW2 /1e-3", "var ΔW₂ · 10³", _STABILITY, "lower", 2, 1e3,
           "Instantaneous variance: the variance of the change of W₂ from one evaluation to the next, "
           "printed in units of 10⁻³ (divisor: number of changes). It depends on how often a run is evaluated."),
    Column("seconds_per_1000_steps", "s/1000 steps", "s per 1000 steps", _COST, "lower", 1, 1,
           "Wall-clock seconds per 1000 training steps, as timed by the run."),
)
# fmt: on


class Statistic(NamedTuple):
    """Mean and spread of one number over seeds."""

    mean: float
    spread: float | None
    """Sample standard deviation (divisor n - 1); None with one seed."""
    n: int
    """Number of seeds."""


class TableRow(NamedTuple):
    """What one method reached."""

    method: str
    """Name of the method; ``"base"`` before fine-tuning, ``"floor"`` for real data against real data."""
    seeds: tuple[int, ...]
    last_step: int | None
    """Training step of the last evaluation; None without evaluations."""
    cells: dict[str, Statistic]
    """By column key; a number that the run does not hold has no entry."""


def read_metrics(folder: str | Path) -> list[Record]:
    """Lines of ``metrics.jsonl`` in a run folder, in the order of the file.

    An unfinished last line, which an interrupted run may leave, is dropped.

    Raises:
        FileNotFoundError: the folder or the file is not there.
        ValueError: a line is not a JSON object with a ``kind``.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a run folder holds its measurements in metrics.jsonl")
    # What follows the last line feed is empty, or the start of a line that was never finished.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise ValueError(f'{path}, line {number} is not an object with a "kind": {line[:60]!r}')
        missing = [key for key in _REQUIRED.get(row["kind"], ()) if key not in row]
        if missing:
            raise ValueError(f"{path}, line {number} (kind {row['kind']!r}) lacks {', '.join(missing)}")
        rows.append(row)
    return rows


def runs(rows: Iterable[Record], kind: str, method: str) -> dict[int, list[Record]]:
    """Records of a method by seed, in order of step; of a step that was recorded twice, the later one."""
    by_seed: dict[int, dict[int, Record]] = {}
    for row in rows:
        if row["kind"] == kind and row["method"] == method:
            by_seed.setdefault(row["seed"], {})[row["step"]] = row
    return {seed: [steps[step] for step in sorted(steps)] for seed, steps in sorted(by_seed.items())}


def furthest(by_seed: dict[int, list[Record]]) -> dict[int, list[Record]]:
    """The seeds that got as far as the furthest one: a mean over different steps would mean nothing."""
    last = max((records[-1]["step"] for records in by_seed.values()), default=None)
    return {seed: records for seed, records in by_seed.items() if records[-1]["step"] == last}


def methods_of(rows: Iterable[Record]) -> list[str]:
    """Methods with any record, in order of appearance; the base is not one of them."""
    return [name for name in dict.fromkeys(row.get("method") for row in rows) if name not in (None, "base")]


def summarise(
    rows: Sequence[Record], methods: Sequence[str] | None = None, columns: Sequence[Column] = COLUMNS
) -> list[TableRow]:
    """Table of a run: the base, one row per method, the floor.

    A row is made from the seeds that reached the last evaluated step of their method. The base and the floor
    are left out where the run does not hold them.

    Args:
        rows: lines of ``metrics.jsonl``.
        methods: rows of the table, in order; by default the methods that have records. A method without
            evaluations gets an empty row.
        columns: of the table.
    """
    methods = methods_of(rows) if methods is None else methods
    known = {column.key for column in COLUMNS}
    others = tuple(
        (column.key, column.number or _last(column.key)) for column in columns if column.key not in known
    )
    table = [_table_row(rows, method, others) for method in ("base", *methods)]
    floors = {row["seed"]: [row] for row in rows if row["kind"] == "floor"}
    table.append(TableRow("floor", tuple(sorted(floors)), None, _cells(floors, _FLOOR + others)))
    return [row for row in table if row.method not in ("base", "floor") or row.cells]


def _table_row(rows: Sequence[Record], method: str, others: tuple[tuple[str, Number], ...]) -> TableRow:
    by_seed = furthest(runs(rows, "evaluation", method))
    cells = _cells(by_seed, _REFERENCE + others + (() if method == "base" else _TRAINED))
    timings: dict[int, list[Record]] = {seed: [] for seed in by_seed}
    for row in rows:
        if row["kind"] == "timing" and row["method"] == method and row["seed"] in timings:
            timings[row["seed"]].append(row)
    cells |= _cells(timings, (("seconds_per_1000_steps", _seconds_per_1000_steps),))
    last_step = next((records[-1]["step"] for records in by_seed.values()), None)
    return TableRow(method, tuple(by_seed), last_step, cells)


def _cells(by_seed: dict[int, list[Record]], columns: Iterable[tuple[str, Number]]) -> dict[str, Statistic]:
    cells = {}
    for key, number in columns:
        values = [value for value in map(number, by_seed.values()) if value is not None]
        if values:
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            cells[key] = Statistic(float(np.mean(values)), spread, len(values))
    return cells


def measures(evaluations: list[Record], timings: list[Record]) -> dict[str, float]:
    """All numbers of one run, by column key; what its records do not hold is left out."""
    numbers = {key: number(evaluations) for key, number in _REFERENCE + _TRAINED}
    numbers["seconds_per_1000_steps"] = _seconds_per_1000_steps(timings)
    return {key: number for key, number in numbers.items() if number is not None}


def _last(key: str) -> Number:
    return lambda records: records[-1].get(key)


def _of_curve(key: str, function: Callable[[np.ndarray, np.ndarray], Any], at_least: int) -> Number:
    def number(records: list[Record]) -> float | None:
        points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
        if len(points) < at_least:
            return None
        steps, values = np.asarray(points, dtype=np.float64).T
        return float(function(steps, values)) if np.isfinite(values).all() else math.nan

    return number


def _seconds_per_1000_steps(timings: list[Record]) -> float | None:
    # One for each run: a resumed one goes on with the time of its checkpoint, and logs it at the end.
    steps = sum(timing["steps"] for timing in timings)
    return 1000 * sum(timing["seconds"] for timing in timings) / steps if steps else None


def _early_stopped_w2(records: list[Record]) -> float | None:
    usable = [record for record in records if record.get("training_energy_distance") is not None]
    return min(usable, key=lambda record: record["training_energy_distance"])["w2"] if usable else None


_REFERENCE = (
    ("final_w2", _last("w2")),
    *(
        (key, _last(key))
        for key in ("energy_distance", "path_length", "one_step_w2", "retention", "path_kl", "diversity")
    ),
)
_FLOOR = tuple(
    (key, number) for key, number in _REFERENCE if key in ("final_w2", "energy_distance", "diversity")
)
# Two points have a rank correlation of one and increments without variance, whatever they are.
_TRAINED = (
    ("best_w2", _of_curve("w2", lambda _, values: values.min(), at_least=1)),
    ("early_stopped_w2", _early_stopped_w2),
    ("spearman_w2", _of_curve("w2", spearman, at_least=3)),
    ("spearman_energy_distance", _of_curve("energy_distance", spearman, at_least=3)),
    (
        "variance_of_w2_increments",
        _of_curve("w2", lambda _, values: instantaneous_variance(values), at_least=3),
    ),
)
