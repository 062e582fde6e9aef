"""The page of a study, in Markdown: what was measured, and what follows from it by fixed rules."""

import re
import shlex
from collections.abc import Sequence

from experiments.study import tables
from experiments.study.findings import compared, expectations, findings
from experiments.study.measures import MEASURES
from experiments.study.paired import FEWEST
from experiments.study.runs import GroupFacts, StudyRun


def study_page(groups: Sequence[GroupFacts], found: Sequence[StudyRun]) -> str:
    """The page.

    Args:
        groups: what the study consists of.
        found: the runs that have ended.
    """
    of_part = {
        part: ([group for group in groups if group.part == part], [run for run in found if run.part == part])
        for part in dict.fromkeys(group.part for group in groups)
    }
    sections = [_opening(groups, found)]
    if "controls" in of_part:
        (facts,), controls = of_part["controls"][0], compared(found)
        sections += [
            findings(found),
            expectations(found),
            tables.against_plain(facts, controls),
            tables.every_method([facts, *of_part.get("strengths", ([], []))[0]], controls),
            tables.at_equal_steps(controls),
            tables.at_equal_weight(controls),
        ]
        if "coupling" in of_part:
            sections.append(tables.coupling(controls, of_part["coupling"][1]))
    if "rates" in of_part:
        sections.append(tables.rates(of_part["rates"][1]))
    if "shifts" in of_part:
        sections.append(tables.shifts(*of_part["shifts"]))
    body = "\n".join([*sections, _absent(groups, found)])
    rows = "\n".join(line for line in body.splitlines() if line.startswith("|"))
    verdicts = len(re.findall(r"\*\*lower|\*\*higher|not decided", rows))
    return f"{body}\n{_reading(verdicts)}"


def _opening(groups: Sequence[GroupFacts], found: Sequence[StudyRun]) -> str:
    counts = ", ".join(
        f"{sum(run.part == part for run in found)} of {part}"
        for part in dict.fromkeys(group.part for group in groups)
    )
    steps, rate, evaluations, sampling = (
        _shared(groups, key) for key in ("steps", "learning_rate", "eval_every", "sampling_steps")
    )
    return f"""# Gradual fine-tuning of a digits flow: the study

`{_command(groups)}`, then `python -m experiments.study.report STUDY --out experiments/results`:
this page, its tables and its figures are made from the log files of the runs. {len(found)} runs have ended: {counts}.
[digits.csv](digits.csv) holds a row for each, [digits_differences.csv](digits_differences.csv) every difference to
plain fine-tuning in the same group.

A flow pretrained on one set of 8x8 digits is fine-tuned on another: {steps} steps, learning rate {rate} where nothing
else is said. All numbers are of raw parameters, evaluated every {evaluations} steps by {sampling} Euler steps, always
from the same noise and against the same held-out images, as many as samples. Mean ± sample standard deviation over
seeds. Arrows point to the better side.

Differences are paired by seed; brackets hold studentised bootstrap intervals of their mean, 95 % each (none with
fewer than {FEWEST} seeds). **Lower** or **higher** is said where the interval leaves out zero. What the intervals
cover is the order of the batches and the noise of training. All seeds share one base, one split of the data, one
noise of the evaluations and one set of held-out images; another of these may move the numbers by more than the
methods differ.
"""


def _main(groups: Sequence[GroupFacts]) -> Sequence[GroupFacts]:
    return [group for group in groups if group.part == "controls"] or groups


def _shared(groups: Sequence[GroupFacts], key: str) -> str:
    return " or ".join(dict.fromkeys(f"{group.config[key]:g}" for group in _main(groups)))


def _command(groups: Sequence[GroupFacts]) -> str:
    """The command of the study, without the folder and without the resuming."""
    words = shlex.split(_main(groups)[0].command)
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in ("--out", "--resume") and before != "--out"
    ]
    return shlex.join(kept)


def _absent(groups: Sequence[GroupFacts], found: Sequence[StudyRun]) -> str:
    lines = ["## Diverged, and not run\n"]
    for facts in groups:
        ended = {(run.method, run.seed): run for run in found if run.group == facts.name}
        for name in facts.config["methods"]:
            seeds = facts.config["seeds"]
            diverged = [seed for seed in seeds if (name, seed) in ended and ended[name, seed].diverged]
            lacking = [seed for seed in seeds if (name, seed) not in ended]
            for some, word in (
                (diverged, "stopped, as loss or samples were not finite"),
                (lacking, "not ended"),
            ):
                if some:
                    listed = ", ".join(map(str, some))
                    lines.append(f"* {facts.part}/{facts.name}, {name}: {word}, seeds {listed}.")
    return "\n".join(lines) + "\n" if len(lines) > 1 else "All planned runs have ended, and none diverged.\n"


def _reading(verdicts: int) -> str:
    told = [column for key, column in MEASURES.items() if key in tables.AGAINST_PLAIN]
    meanings = "\n".join(f"* {column.title}: {column.meaning}" for column in told)
    return f"""## How to read this

The tables give {verdicts} verdicts at 95 % each, without correction for their number: with no differences at all, about
one in twenty would still be told. The section on what holds is corrected.

{meanings}

One small data set and one network: this is a check of the method and of the program, not evidence for other data.
"""
