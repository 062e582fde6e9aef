"""The tables of a study's page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.method_words import DESCRIPTIONS
from experiments.study.cells import header, interval, number, quartiles, spread, title, verdict
from experiments.study.findings import OURS, THEIRS
from experiments.study.measures import MAX_GAP, MEASURES, until_weight
from experiments.study.paired import paired_difference
from experiments.study.runs import GroupFacts, StudyRun, by_seed

_AT_EQUAL_STEPS = (
    "spearman_energy_distance",
    "variance_of_w2_increments",
    "final_w2",
    "late_w2",
    "energy_distance",
    "late_energy_distance",
    "early_stopped_w2",
    "retention",
)
AGAINST_PLAIN = (
    *_AT_EQUAL_STEPS,
    "spearman_w2",
    "descending_spearman",
    "settled_spearman",
    "variance_without_first",
    "settled_variance",
    "steps_to_tenth",
    "late_weight",
    "best_w2",
    "path_length",
    "one_step_w2",
    "diversity",
)
_OF_EVERY_METHOD = (
    *_AT_EQUAL_STEPS,
    "steps_to_tenth",
    "late_weight",
    "best_w2",
    "path_length",
    "one_step_w2",
    "diversity",
)
_AT_EQUAL_WEIGHT = (
    "late_w2",
    "late_energy_distance",
    "spearman_energy_distance",
    "variance_of_w2_increments",
)
_COUPLING = ("path_length", "one_step_w2", "final_w2", "energy_distance", "variance_of_w2_increments")
_RATES = ("energy_distance", "final_w2", "spearman_energy_distance", "variance_of_w2_increments")
_SHIFTS = (
    "final_w2",
    "energy_distance",
    "early_stopped_w2",
    "spearman_energy_distance",
    "variance_of_w2_increments",
)
_SELF_PACED = "gradual-self-paced"


def against_plain(facts: GroupFacts, runs: Sequence[StudyRun]) -> str:
    """Gradual-linear against plain fine-tuning, every measure."""
    planned = len(facts.config["seeds"])
    lines = [
        f"## Gradual fine-tuning against plain fine-tuning\n\n{_setting(facts)} {_references(facts)}\n",
        "| | plain | gradual-linear | difference | verdict |",
        "|---|---|---|---|---|",
    ]
    for key in AGAINST_PLAIN:
        plain, gradual = (by_seed(runs, key, name) for name in (THEIRS, OURS))
        difference = paired_difference(gradual, plain)
        cells = (
            spread(plain, key, planned),
            spread(gradual, key, planned),
            interval(difference, key, planned),
            verdict(difference),
        )
        lines.append(f"| {title(key)} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + "\n\n![Energy distance by step and by effective target weight](digits_curves.png)\n"
        "\nMethods that aim at a compromise, L2-SP and from-scratch are left out of the figure.\n"
    )


def every_method(groups: Sequence[GroupFacts], runs: Sequence[StudyRun]) -> str:
    """Every method with what it is, and its measures."""
    facts, *others = groups
    planned, names = len(facts.config["seeds"]), [*facts.config["methods"], *(group.name for group in others)]
    settings = facts.config["controls"]
    strengths = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    lines = ["## Every method\n"]
    lines += [f"* {name}: {DESCRIPTIONS[name]}" for name in facts.config["methods"]]
    for group in others:
        (method,), changed = group.config["methods"], group.config["controls"]
        differs = [f"{name} {value:g}" for name, value in changed.items() if value != settings.get(name)]
        lines.append(f"* {group.name}: {' '.join([DESCRIPTIONS[method], *differs])}")
    lines.append(
        f"\nStrengths of the controls, set beforehand and not tuned: {strengths}. From-scratch has the learning rate "
        f"{facts.config['base_learning_rate']:g}. Gradual-constant, prior-preservation, distillation and interpolated "
        "do not aim at the law of the new data alone, but at a compromise: a larger distance to it is what they are "
        "for. Methods that replay see fewer new images in a step.\n"
    )
    lines += header("method", [*map(title, _OF_EVERY_METHOD), "s per 1000 steps, median (quartiles)"])
    for name in names:
        cells = [spread(by_seed(runs, key, name), key, planned) for key in _OF_EVERY_METHOD]
        seconds = quartiles(by_seed(runs, "seconds_per_1000_steps", name), "seconds_per_1000_steps")
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines) + "\n\nThe times are of a machine that other programs used, too.\n"


def at_equal_steps(runs: Sequence[StudyRun]) -> str:
    """Differences of gradual-linear to every other method, at equal steps."""
    lines = ["## Gradual-linear minus every other method, at equal steps\n"]
    lines += header("against", [title(key) for key in _AT_EQUAL_STEPS])
    for name in _others(runs):
        cells = [_cell(by_seed(runs, key, OURS), by_seed(runs, key, name), key) for key in _AT_EQUAL_STEPS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n![Differences to the other methods](digits_differences.png)\n"


def at_equal_weight(runs: Sequence[StudyRun]) -> str:
    """The same where gradual-linear has the effective target weight that the other method ends with."""
    lines = [
        "## Gradual-linear minus every other method, at equal effective target weight\n",
        "The other method at its end (means of its last tenth; Spearman and variance over its whole run), against "
        "gradual-linear at the moment when it first reaches the same effective target weight ŵ (Spearman and "
        "variance up to there). Left out are seeds whose ŵ gradual-linear never reaches, or jumps over by more than "
        f"{MAX_GAP:g} between two evaluations; from-scratch does not start at the base and has no ŵ. The penalty of "
        "prior-preservation and of distillation lies on other points than the training paths: there ŵ describes "
        "where the network is, not what the objective asks for.\n",
        *header("against", ["its late ŵ", "reached at step", *(title(key) for key in _AT_EQUAL_WEIGHT)]),
    ]
    curves = {run.seed: run.curve for run in runs if run.method == OURS and not run.diverged}
    for name in _others(runs):
        if name == "from-scratch":
            continue
        weights = by_seed(runs, "late_weight", name)
        read = {
            seed: numbers
            for seed, weight in weights.items()
            if seed in curves and (numbers := until_weight(curves[seed], weight))
        }
        cells = [
            _cell(
                {seed: numbers[key] for seed, numbers in read.items() if key in numbers},
                by_seed(runs, key, name),
                key,
                planned=len(weights),
            )
            for key in _AT_EQUAL_WEIGHT
        ]
        step = f"{np.mean([numbers['step'] for numbers in read.values()]):.0f}" if read else "never"
        lines.append(f"| {name} | {spread(weights, 'late_weight')} | {step} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _others(runs: Iterable[StudyRun]) -> list[str]:
    return [name for name in dict.fromkeys(run.method for run in runs) if name != OURS]


def _cell(
    ours: Mapping[int, float], theirs: Mapping[int, float], key: str, planned: int | None = None
) -> str:
    difference = paired_difference(ours, theirs)
    return f"{interval(difference, key, planned)} {verdict(difference)}".strip()


def coupling(independent: Sequence[StudyRun], exact: Sequence[StudyRun]) -> str:
    """Exact optimal transport against the independent coupling."""
    lines = ["## Exact optimal transport minus the independent coupling\n"]
    lines += header("method", [title(key) for key in _COUPLING])
    for name in dict.fromkeys(run.method for run in exact):
        cells = []
        for key in _COUPLING:
            ours, theirs = by_seed(exact, key, name), by_seed(independent, key, name)
            cells.append(f"{spread(theirs, key)} to {spread(ours, key)}: {_cell(ours, theirs, key)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rates(runs: Sequence[StudyRun]) -> str:
    """Cooling schedules over learning rates, with the rank of self-paced cooling."""
    rates = sorted({run.learning_rate for run in runs})
    names = list(dict.fromkeys(run.method for run in runs))
    lines = [
        "## Self-paced cooling among hand-set schedules, over learning rates\n",
        "One setting of self-paced cooling for all rates. Its rank is given for each seed, 1 for the lowest of "
        f"{len(names)} schedules; a run that diverged ranks last.\n",
    ]
    for key in _RATES:
        lines += [f"### {title(key)}\n", *header("schedule", [f"rate {rate:g}" for rate in rates])]
        for name in names:
            cells = [spread(by_seed(runs, key, name, learning_rate=rate), key) for rate in rates]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        ranks = [ranks_by_seed([run for run in runs if run.learning_rate == rate], key) for rate in rates]
        cells = [", ".join(map(str, some)) or "-" for some in ranks]
        lines.append(f"| *rank of self-paced, by seed* | {' | '.join(cells)} |\n")
    return "\n".join([*lines, "![Schedules over learning rates](digits_rates.png)\n"])


def ranks_by_seed(runs: Sequence[StudyRun], key: str) -> list[int]:
    """Rank of self-paced cooling on each seed on which all schedules have ended; what diverged ranks last."""
    names = {run.method for run in runs}
    ranks = []
    for seed in sorted({run.seed for run in runs}):
        values = {run.method: run.numbers.get(key, np.inf) for run in runs if run.seed == seed}
        if names == values.keys() and _SELF_PACED in values:
            ours = values.pop(_SELF_PACED)
            ranks.append(
                1 + sum(value <= ours if ours == np.inf else value < ours for value in values.values())
            )
    return ranks


def shifts(groups: Sequence[GroupFacts], runs: Sequence[StudyRun]) -> str:
    """Each other shift, and few images."""
    lines = ["## Other shifts, and few images\n"]
    for facts in groups:
        here = [run for run in runs if run.group == facts.name]
        planned = len(facts.config["seeds"])
        lines += [f"### {facts.name}\n", f"{_setting(facts)} {_references(facts)}\n"]
        lines += header("method", [title(key) for key in _SHIFTS])
        for name in dict.fromkeys(run.method for run in here):
            cells = [spread(by_seed(here, key, name), key, planned) for key in _SHIFTS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        for name in dict.fromkeys(run.method for run in here if run.method != THEIRS):
            cells = [_cell(by_seed(here, key, name), by_seed(here, key, THEIRS), key) for key in _SHIFTS]
            lines.append(f"| *{name} minus plain* | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _setting(facts: GroupFacts) -> str:
    config: Mapping[str, Any] = facts.config
    return (
        f"Shift {config['shift']}, {config['num_target']} images, learning rate {config['learning_rate']:g}, "
        f"{config['coupling']} coupling, {len(config['seeds'])} seeds."
    )


def _references(facts: GroupFacts) -> str:
    keys = (("w2", "final_w2"), ("energy_distance", "energy_distance"), ("diversity", "diversity"))

    def told(kind: str) -> str:
        cells = ((MEASURES[key].title, facts.references.get(f"{kind} {name}"), key) for name, key in keys)
        return ", ".join(f"{text} {number(value, key)}" for text, value, key in cells)

    return f"The base: {told('base')}. Real images against other real ones: {told('floor')}."
