"""What a study found: each claim with what the intervals say of it, and what was expected of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.study.cells import interval, number, spread
from experiments.study.paired import LEVEL, Difference, paired_difference
from experiments.study.runs import StudyRun, by_seed

OURS, THEIRS = "gradual-linear", "plain"


def compared(found: Iterable[StudyRun]) -> list[StudyRun]:
    """The runs on one shift, one learning rate and the independent coupling."""
    return [run for run in found if run.part in ("controls", "strengths")]


class Claim(NamedTuple):
    """That a number is lower under gradual-linear than under plain fine-tuning."""

    text: str
    key: str
    their_key: str = ""
    """The measure of plain fine-tuning; the same one where empty."""


CLAIMS = (
    Claim(
        "Over the whole run the rank correlation of step and energy distance is closer to -1",
        "spearman_energy_distance",
    ),
    Claim("During its descent to a tenth, too", "descending_spearman"),
    Claim("In the last fifth of the steps, too", "settled_spearman"),
    Claim("The increments of W2 vary less over the whole run", "variance_of_w2_increments"),
    Claim("Without the first increment, too", "variance_without_first"),
    Claim("In the last fifth of the steps, too", "settled_variance"),
    Claim("A tenth of the base's energy distance is reached in fewer steps", "steps_to_tenth"),
    Claim("W2 at the last evaluation is lower", "final_w2"),
    Claim("Mean W2 of the last tenth of the steps is lower", "late_w2"),
    Claim("Energy distance at the last evaluation is lower", "energy_distance"),
    Claim("Mean energy distance of the last tenth of the steps is lower", "late_energy_distance"),
    Claim("With early stopping of both, W2 is lower", "early_stopped_w2"),
    Claim(
        "W2 at the last evaluation is lower than that of early-stopped plain fine-tuning",
        "final_w2",
        "early_stopped_w2",
    ),
    Claim("The drift ends closer to the base's", "retention"),
)
AGAINST_CONTROLS = (
    "spearman_energy_distance",
    "variance_of_w2_increments",
    "late_w2",
    "late_energy_distance",
)


class Expected(NamedTuple):
    """A trial on one seed, with another implementation, before this study."""

    text: str
    key: str
    plain: float
    other: float
    part: str


_TRIAL = (
    Expected("Spearman of step and energy distance", "spearman_energy_distance", -0.50, -0.99, "controls"),
    Expected("variance of W2 increments, 1e-3", "variance_of_w2_increments", 1.6e-3, 0.44e-3, "controls"),
    Expected("final W2", "final_w2", 3.196, 3.174, "controls"),
    Expected("path length, plain, exact OT", "path_length", 9.0, 8.7, "coupling"),
    Expected("one-step W2, plain, exact OT", "one_step_w2", 3.97, 3.16, "coupling"),
)


def findings(found: Sequence[StudyRun]) -> str:
    """The claims about gradual-linear, decided by intervals corrected for their number."""
    controls = compared(found)
    exact = [run for run in found if run.part == "coupling"]
    others = [
        name for name in dict.fromkeys(run.method for run in controls) if not name.startswith("gradual-")
    ]
    count = len(CLAIMS) + len(AGAINST_CONTROLS) * len(others) + (4 if exact else 0)
    level = 1.0 - (1.0 - LEVEL) / count
    lines = [
        "## What holds, and what does not\n",
        f"Of gradual-linear against plain fine-tuning. The intervals of this section are those of {count} "
        f"simultaneous comparisons at 95 % together (Bonferroni: {100 * level:.2f} % each).\n",
    ]
    for claim in CLAIMS:
        ours, theirs = (
            by_seed(controls, claim.key, OURS),
            by_seed(controls, claim.their_key or claim.key, THEIRS),
        )
        lines.append(_line(claim.text, ours, theirs, claim.key, level))
    lines.append("\nAgainst every other method that is not gradual:\n")
    for key in AGAINST_CONTROLS:
        ours = by_seed(controls, key, OURS)
        signs = {name: _sign(paired_difference(ours, by_seed(controls, key, name), level)) for name in others}
        told = [
            f"{word} {', '.join(some)}"
            for sign, word in _WORDS.items()
            if (some := [name for name, found in signs.items() if found == sign])
        ]
        lines.append(f"* {_PLAIN_TITLES[key]} of gradual-linear is {'; '.join(told)}.")
    if exact:
        lines.append("\nOf exact optimal transport against the independent coupling:\n")
    for name in dict.fromkeys(run.method for run in exact):
        for key, text in (("path_length", "The paths are shorter"), ("one_step_w2", "One-step W2 is lower")):
            ours, theirs = by_seed(exact, key, name), by_seed(controls, key, name)
            lines.append(_line(f"{text}, {name}", ours, theirs, key, level))
    return "\n".join(lines) + "\n"


_WORDS = {
    -1: "lower than under",
    1: "higher than under",
    0: "not told apart from that of",
    None: "without enough seeds in common with",
}
_PLAIN_TITLES = {
    "spearman_energy_distance": "Spearman correlation of step and energy distance",
    "variance_of_w2_increments": "Variance of the increments of W2",
    "late_w2": "Late W2",
    "late_energy_distance": "Late energy distance",
}


def _line(text: str, ours: Mapping[int, float], theirs: Mapping[int, float], key: str, level: float) -> str:
    difference = paired_difference(ours, theirs, level)
    said = {
        -1: "**holds**",
        1: "**does not hold**: the opposite does",
        0: "**not decided**",
        None: "**not decided**: not enough seeds in common",
    }[_sign(difference)]
    means = f"{spread(ours, key)} against {spread(theirs, key)}; difference {interval(difference, key)}"
    return f"* {text}: {said}. {means}."


def _sign(difference: Difference | None) -> int | None:
    return None if difference is None else difference.sign


def expectations(found: Sequence[StudyRun]) -> str:
    """What a trial on one seed had led to expect, beside what came out."""
    lines = [
        "## Expected and found\n",
        "Expected: a trial on one seed with another implementation, before this study; its two rows on exact optimal "
        "transport were at learning rate 1e-3, 3000 steps and 448 images, so that only the direction can be "
        "compared. It comes out where the interval of the difference lies on the expected side of zero.\n",
        "| | expected | found | difference | comes out |",
        "|---|---|---|---|---|",
    ]
    for text, key, plain, other, part in _TRIAL:
        controls = compared(found)
        theirs = by_seed(controls, key, THEIRS)
        ours = (
            by_seed(controls, key, OURS)
            if part == "controls"
            else by_seed((run for run in found if run.part == part), key, THEIRS)
        )
        difference = paired_difference(ours, theirs)
        sign = _sign(difference)
        answer = "too few seeds" if sign is None else "yes" if sign == (1 if other > plain else -1) else "no"
        lines.append(
            f"| {text} | {number(plain, key)} to {number(other, key)} | {spread(theirs, key)} to "
            f"{spread(ours, key)} | {interval(difference, key)} | {answer} |"
        )
    return "\n".join(lines) + "\n"
