"""The runs of a study, read from its folder: one row each, for tidy tables."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.files import read_json
from experiments.study.measures import of_curve
from experiments.study.paired import paired_difference
from experiments.summary import Record, measures, read_metrics, runs


class GroupFacts(NamedTuple):
    """What all runs of a group share."""

    part: str
    name: str
    config: dict[str, Any]
    """Settings, as in config.json."""
    command: str
    references: dict[str, float]
    """Scores of the base and of real data: ``"base w2"``, ``"floor w2"``, ..."""


class StudyRun(NamedTuple):
    """One run of a study: what it was, and what it reached."""

    part: str
    group: str
    shift: str
    num_target: int
    coupling: str
    learning_rate: float
    method: str
    """Name of the method; of one with other settings than the default ones, the name of its group."""
    seed: int
    diverged: bool
    curve: list[Record]
    """Its evaluations, in order of step; not in the table."""
    numbers: dict[str, float]
    """Measures by name; none of a run that diverged."""


_IDENTITY = (
    "part",
    "group",
    "shift",
    "num_target",
    "coupling",
    "learning_rate",
    "method",
    "seed",
    "diverged",
)


def read_study(folder: Path) -> tuple[list[GroupFacts], list[StudyRun]]:
    """The groups of a study, and all runs that have ended.

    Raises:
        ValueError: if a file is not what a study writes.
    """
    groups, found = [], []
    for path in sorted(folder.glob("*/*/config.json")):
        facts, rows = read_json(path), read_metrics(path.parent)
        try:
            references = _references(rows)
            part, config = facts["part"], facts["config"]
            group = GroupFacts(part, path.parent.name, config, facts["command"], references)
            found += _runs(group, rows)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{path.parent} is not a group of a study ({type(error).__name__}: {error}): give the folder that "
                "python -m experiments.study wrote"
            ) from error
        groups.append(group)
    return groups, found


def _runs(group: GroupFacts, rows: Sequence[Record]) -> Iterable[StudyRun]:
    config = group.config
    diverged = {(row["method"], row["seed"]) for row in rows if row["kind"] == "diverged"}
    for method in config["methods"]:
        curves = runs(rows, "evaluation", method)
        for seed in config["seeds"]:
            name = (method, seed)
            timings = [
                row for row in rows if row["kind"] == "timing" and (row["method"], row["seed"]) == name
            ]
            if not timings and name not in diverged:
                continue
            curve, numbers = curves.get(seed, []), {}
            if name not in diverged:
                numbers = measures(curve, timings) | of_curve(curve, group.references["base energy_distance"])
            yield StudyRun(
                part=group.part,
                group=group.name,
                shift=config["shift"],
                num_target=config["num_target"],
                coupling=config["coupling"],
                learning_rate=config["learning_rate"],
                method=group.name if group.part == "strengths" else method,
                seed=seed,
                diverged=name in diverged,
                curve=curve,
                numbers=numbers,
            )


def _references(rows: Sequence[Record]) -> dict[str, float]:
    references: dict[str, float] = {}
    for row in rows:
        kind = "floor" if row["kind"] == "floor" else "base" if row.get("method") == "base" else None
        if kind:
            references |= {f"{kind} {key}": v for key, v in row.items() if isinstance(v, float)}
    return references


def by_seed(found: Iterable[StudyRun], key: str, method: str, **identity: object) -> dict[int, float]:
    """A measure of a method by seed, among the runs with the given identity."""
    return {
        run.seed: run.numbers[key]
        for run in found
        if run.method == method
        and key in run.numbers
        and all(getattr(run, name) == value for name, value in identity.items())
    }


def as_csv(found: Sequence[StudyRun]) -> str:
    """The tidy table: a row for each run, a column for each measure."""
    names = list(dict.fromkeys(name for run in found for name in run.numbers))
    rows = [
        [*(getattr(run, name) for name in _IDENTITY), *(run.numbers.get(name, "") for name in names)]
        for run in found
    ]
    return _csv([*_IDENTITY, *names], rows)


def differences_as_csv(found: Sequence[StudyRun]) -> str:
    """Differences to plain fine-tuning in the same group, paired by seed: a row for each method and measure."""
    rows = []
    for group in dict.fromkeys(run.group for run in found):
        here = [run for run in found if run.group == group]
        for method in dict.fromkeys(run.method for run in here if run.method != "plain"):
            for key in dict.fromkeys(name for run in here for name in run.numbers):
                difference = paired_difference(by_seed(here, key, method), by_seed(here, key, "plain"))
                if difference is not None:
                    mean, low, high, n = difference
                    rows.append([here[0].part, group, method, key, mean, low, high, n])
    return _csv(["part", "group", "method", "measure", "minus_plain", "low", "high", "seeds"], rows)


def _csv(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([heading, *rows])
    return file.getvalue()
