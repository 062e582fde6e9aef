"""The runs of a study, read from its folder: one row each, for a tidy table."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.files import read_json
from experiments.summary import Record, measures, read_metrics, runs

LEVELS = (0.5, 0.9)
"""Effective target weights at which methods are compared."""

MAX_GAP = 0.2
"""A curve that jumps further than this in effective target weight between two evaluations is not read in between."""


class StudyRun(NamedTuple):
    """One run of a study: what it was, and what it reached."""

    part: str
    group: str
    shift: str
    num_target: int
    coupling: str
    learning_rate: float
    method: str
    seed: int
    diverged: bool
    curve: list[Record]
    """Its evaluations, in order of step; not in the table."""
    numbers: dict[str, float]
    """Measures by name."""


IDENTITY = ("part", "group", "shift", "num_target", "coupling", "learning_rate", "method", "seed", "diverged")


def read_study(folder: Path) -> Iterable[StudyRun]:
    """All runs of a study that have ended; those that have not are left out."""
    for path in sorted(folder.glob("*/*/config.json")):
        facts = read_json(path)
        rows = read_metrics(path.parent)
        config = facts["config"]
        finished = {(row["method"], row["seed"]) for row in rows if row["kind"] == "timing"}
        diverged = {(row["method"], row["seed"]) for row in rows if row["kind"] == "diverged"}
        for method in config["methods"]:
            curves = runs(rows, "evaluation", method)
            for seed in config["seeds"]:
                if (method, seed) not in finished | diverged:
                    continue
                timings = [
                    row
                    for row in rows
                    if row["kind"] == "timing" and (row["method"], row["seed"]) == (method, seed)
                ]
                curve = curves.get(seed, [])
                ended = (method, seed) in finished
                numbers = measures(curve, timings) | of_curve(curve) if ended else {}
                yield StudyRun(
                    part=facts["part"],
                    group=path.parent.name,
                    shift=config["shift"],
                    num_target=config["num_target"],
                    coupling=config["coupling"],
                    learning_rate=config["learning_rate"],
                    method=method,
                    seed=seed,
                    diverged=not ended,
                    curve=curve,
                    numbers=numbers,
                )


def read_references(folder: Path) -> dict[str, dict[str, float]]:
    """Scores of the base and of real data, ``{group: {"base w2": ..., "floor w2": ...}}``."""
    references: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*/*/metrics.jsonl")):
        scores = references.setdefault(path.parent.name, {})
        for row in read_metrics(path.parent):
            kind = "floor" if row["kind"] == "floor" else "base" if row.get("method") == "base" else None
            if kind:
                scores |= {f"{kind} {key}": v for key, v in row.items() if isinstance(v, float)}
    return references


def of_curve(curve: Sequence[Record]) -> dict[str, float]:
    """What a curve says besides the columns of a report.

    ``steps_to_tenth``: first evaluated step at which the energy distance is below a tenth of that at step 0.
    ``w2_at_weight_L``, ``energy_distance_at_weight_L``: where the effective target weight first reaches the level L, by
    linear interpolation between two evaluations. What is never reached, or jumped over, has no entry.
    """
    numbers = {}
    energies = np.array([record["energy_distance"] for record in curve])
    below = np.flatnonzero(energies < 0.1 * energies[0])
    if len(below):
        numbers["steps_to_tenth"] = float(curve[int(below[0])]["step"])
    for level in LEVELS:
        weights = np.array([record["reached_weight"] for record in curve], dtype=np.float64)
        above = np.flatnonzero(weights >= level)
        if not len(above):
            continue
        i = int(above[0])
        if i > 0 and weights[i] - weights[i - 1] > MAX_GAP:
            continue
        share = 1.0 if i == 0 else (level - weights[i - 1]) / (weights[i] - weights[i - 1])
        for key in ("w2", "energy_distance"):
            before, after = curve[max(i - 1, 0)][key], curve[i][key]
            numbers[f"{key}_at_weight_{level:g}"] = float(before + share * (after - before))
    return numbers


def as_csv(found: Sequence[StudyRun]) -> str:
    """The tidy table: a row for each run, a column for each measure."""
    names = list(dict.fromkeys(name for run in found for name in run.numbers))
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([*IDENTITY, *names])
    for run in found:
        identity = [getattr(run, name) for name in IDENTITY]
        writer.writerow([*identity, *(run.numbers.get(name, "") for name in names)])
    return file.getvalue()
