"""The page of a study, in Markdown: what was measured, and what follows from it by a fixed rule."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from experiments.study.paired import Difference, paired_difference
from experiments.study.runs import StudyRun

_DECIMALS = {
    "final_w2": 3,
    "best_w2": 3,
    "early_stopped_w2": 3,
    "energy_distance": 4,
    "path_length": 3,
    "one_step_w2": 3,
    "retention": 3,
    "diversity": 3,
    "spearman_w2": 3,
    "spearman_energy_distance": 3,
    "variance_of_w2_increments": 2,
    "seconds_per_1000_steps": 1,
    "energy_distance_at_weight_0.5": 4,
    "energy_distance_at_weight_0.9": 4,
    "w2_at_weight_0.5": 3,
    "w2_at_weight_0.9": 3,
    "steps_to_tenth": 0,
}
_TITLES = {
    "final_w2": "final W2",
    "best_w2": "best W2",
    "early_stopped_w2": "early-stopped W2",
    "energy_distance": "final energy distance",
    "path_length": "path length",
    "one_step_w2": "one-step W2",
    "retention": "distance to base drift",
    "diversity": "diversity",
    "spearman_w2": "Spearman(step, W2)",
    "spearman_energy_distance": "Spearman(step, energy)",
    "variance_of_w2_increments": "variance of W2 increments, 1e-3",
    "seconds_per_1000_steps": "s per 1000 steps",
    "energy_distance_at_weight_0.5": "energy distance at w_hat = 0.5",
    "energy_distance_at_weight_0.9": "energy distance at w_hat = 0.9",
    "w2_at_weight_0.5": "W2 at w_hat = 0.5",
    "w2_at_weight_0.9": "W2 at w_hat = 0.9",
    "steps_to_tenth": "steps to a tenth of the base's energy distance",
}
_SCALES = {"variance_of_w2_increments": 1e3}

_AT_EQUAL_STEPS = (
    "spearman_energy_distance",
    "spearman_w2",
    "variance_of_w2_increments",
    "final_w2",
    "energy_distance",
    "retention",
    "steps_to_tenth",
    "diversity",
    "path_length",
    "one_step_w2",
)
_AT_EQUAL_WEIGHTS = (
    "energy_distance_at_weight_0.5",
    "energy_distance_at_weight_0.9",
    "w2_at_weight_0.5",
    "w2_at_weight_0.9",
)

Select = Callable[[StudyRun], bool]


def study_page(found: Sequence[StudyRun], references: Mapping[str, Mapping[str, float]]) -> str:
    """The page.

    Args:
        found: the runs that have ended.
        references: scores of base and real data by group.
    """
    sections = [
        _opening(found),
        _findings(found),
        _against_plain(found, references),
        _against_controls(found),
        _coupling(found),
        _rates(found),
        _shifts(found),
        _reading(),
    ]
    return "\n".join(section for section in sections if section)


def by_seed(found: Iterable[StudyRun], key: str, method: str, **identity: object) -> dict[int, float]:
    """A measure of a method by seed, among the runs with the given identity."""
    return {
        run.seed: run.numbers[key]
        for run in found
        if run.method == method
        and key in run.numbers
        and all(getattr(run, name) == value for name, value in identity.items())
    }


def _opening(found: Sequence[StudyRun]) -> str:
    seeds = {part: len({run.seed for run in found if run.part == part}) for part in _parts(found)}
    counts = ", ".join(
        f"{part} {sum(run.part == part for run in found)} (on {count} seeds)" for part, count in seeds.items()
    )
    return f"""# Gradual fine-tuning of a digits flow: the study

`python -m experiments.study digits`, then `python -m experiments.study.report runs/study/digits --out
experiments/results`: this page and its figures are made from the log files of the runs. Runs that had ended:
{len(found)}; {counts}.

A flow pretrained on one set of 8x8 digits is fine-tuned on another. All numbers are of raw parameters, of 384 samples
by 100 Euler steps from the same noise, against 384 held-out images. Differences are paired by seed; brackets hold 95 %
bootstrap intervals of their mean. **Lower** or **higher** is said where the interval leaves out zero, and "not decided"
elsewhere. Intervals are not corrected for the number of comparisons. The strengths of the controls are the defaults of
`experiments/configs/settings.py` (for the replayed samples, those of the papers) and were not tuned.
"""


def _findings(found: Sequence[StudyRun]) -> str:
    """Each claim with what the intervals say of it."""
    controls = [run for run in found if run.part == "controls"]
    exact = [run for run in found if run.part == "coupling"]
    claims = [
        ("Energy distance falls more monotonically than in plain fine-tuning", "spearman_energy_distance"),
        (
            "Convergence is calmer than in plain fine-tuning (variance of the increments)",
            "variance_of_w2_increments",
        ),
        ("The end is better in W2", "final_w2"),
        ("The end is better in energy distance", "energy_distance"),
        ("With early stopping, W2 is better", "early_stopped_w2"),
        ("The drift stays closer to the base's", "retention"),
        ("A tenth of the base's energy distance is reached in fewer steps", "steps_to_tenth"),
    ]
    lines = ["## What holds, and what does not\n"]
    lines += [
        _claim(text, by_seed(controls, key, "gradual-linear"), by_seed(controls, key, "plain"), key)
        for text, key in claims
    ]
    names = [
        name for name in dict.fromkeys(run.method for run in controls) if not name.startswith("gradual-")
    ]
    for key in ("spearman_energy_distance", "variance_of_w2_increments", "final_w2", "energy_distance"):
        ours = by_seed(controls, key, "gradual-linear")
        signs = {name: _sign(paired_difference(ours, by_seed(controls, key, name))) for name in names}
        groups = {
            word: [name for name, found in signs.items() if found == sign]
            for word, sign in (("lower than", -1), ("higher than", 1), ("not told apart from", 0))
        }
        told = "; ".join(f"{word} {', '.join(some)}" for word, some in groups.items() if some)
        lines.append(f"* {_TITLES[key]} of gradual-linear is {told}.")
    for name in ("gradual-linear", "plain"):
        for key, text in (
            ("path_length", "shortens the paths"),
            ("one_step_w2", "improves one-step samples"),
        ):
            ours, theirs = by_seed(exact, key, name), by_seed(controls, key, name)
            if ours:
                lines.append(_claim(f"Exact optimal transport {text} of {name}", ours, theirs, key))
    return "\n".join(lines) + "\n" if controls else ""


def _claim(text: str, ours: Mapping[int, float], theirs: Mapping[int, float], key: str) -> str:
    difference = paired_difference(ours, theirs)
    said = {-1: "**holds**", 1: "**does not hold**: the opposite does", 0: "**not decided**"}[
        _sign(difference)
    ]
    means = f"{_spread(ours, key)} against {_spread(theirs, key)}; difference {_interval(difference, key)}"
    return f"* {text}: {said}. {means}."


def _sign(difference: Difference | None) -> int:
    return 0 if difference is None else difference.sign


def _against_plain(found: Sequence[StudyRun], references: Mapping[str, Mapping[str, float]]) -> str:
    runs = [run for run in found if run.part == "controls"]
    if not runs:
        return ""
    lines = [
        "## Gradual fine-tuning against plain fine-tuning\n",
        "Unseen classes, 512 images, learning rate 1e-4, independent coupling, 2000 steps; w linear in the step."
        f"{_references(references.get('all', {}))}\n",
        "| | plain | gradual-linear | difference | verdict |",
        "|---|---|---|---|---|",
    ]
    for key in (*_AT_EQUAL_STEPS, "early_stopped_w2", *_AT_EQUAL_WEIGHTS):
        plain, gradual = (by_seed(runs, key, name) for name in ("plain", "gradual-linear"))
        difference = paired_difference(gradual, plain)
        cells = (_spread(plain, key), _spread(gradual, key), _interval(difference, key), _verdict(difference))
        lines.append(f"| {_TITLES[key]} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + "\n\n![Energy distance by step and by effective target weight](digits_curves.png)\n"
    )


def _against_controls(found: Sequence[StudyRun]) -> str:
    runs = [run for run in found if run.part == "controls"]
    if not runs:
        return ""
    names = list(dict.fromkeys(run.method for run in runs))
    keys = (*_AT_EQUAL_STEPS, "best_w2", "early_stopped_w2", "seconds_per_1000_steps")
    lines = ["## Every method\n", "Mean and sample standard deviation over seeds.\n"]
    lines += _header("method", [_TITLES[key] for key in keys])
    for name in names:
        cells = [_spread(by_seed(runs, key, name), key) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["\n## Gradual-linear minus every control, at equal steps\n"]
    lines += _differences(runs, names, _AT_EQUAL_STEPS[:7])
    lines += [
        "\n## Gradual-linear minus every control, at equal effective target weight\n",
        "Each curve is read where its measured weight w_hat first reaches the level; a dash if a seed never does,"
        " or jumps over it by more than 0.2 between two evaluations.\n",
    ]
    lines += _differences(runs, names, _AT_EQUAL_WEIGHTS)
    return "\n".join(lines) + "\n\n![Differences to the controls](digits_differences.png)\n"


def _differences(runs: Sequence[StudyRun], names: Sequence[str], keys: Sequence[str]) -> list[str]:
    lines = _header("against", [_TITLES[key] for key in keys])
    for name in names:
        if name == "gradual-linear":
            continue
        cells = []
        for key in keys:
            ours, theirs = (by_seed(runs, key, other) for other in ("gradual-linear", name))
            difference = paired_difference(ours, theirs) if len(theirs) == len(ours) else None
            cells.append(f"{_interval(difference, key)} {_verdict(difference)}".strip())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _coupling(found: Sequence[StudyRun]) -> str:
    exact = [run for run in found if run.part == "coupling"]
    if not exact:
        return ""
    independent = [run for run in found if run.part == "controls"]
    lines = ["## Exact optimal transport against the independent coupling\n"]
    lines += ["| method | | independent | exact | difference | verdict |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(run.method for run in exact):
        for key in ("path_length", "one_step_w2", "final_w2", "energy_distance", "variance_of_w2_increments"):
            ours, theirs = by_seed(exact, key, name), by_seed(independent, key, name)
            difference = paired_difference(ours, theirs)
            cells = (
                _spread(theirs, key),
                _spread(ours, key),
                _interval(difference, key),
                _verdict(difference),
            )
            lines.append(f"| {name} | {_TITLES[key]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rates(found: Sequence[StudyRun]) -> str:
    runs = [run for run in found if run.part == "rates"]
    if not runs:
        return ""
    rates = sorted({run.learning_rate for run in runs})
    names = list(dict.fromkeys(run.method for run in runs))
    lines = [
        "## Self-paced cooling among hand-set schedules, over learning rates\n",
        "One setting of self-paced cooling for all rates. Ranks are of the mean over seeds, 1 is lowest, among "
        f"{len(names)} schedules.\n",
    ]
    for key in ("energy_distance", "final_w2", "variance_of_w2_increments"):
        table = {
            name: [_mean(by_seed(runs, key, name, learning_rate=rate)) for rate in rates] for name in names
        }
        lines += [f"### {_TITLES[key]}\n", *_header("schedule", [f"rate {rate:g}" for rate in rates])]
        lines += [
            f"| {name} | {' | '.join(_number(value, key) for value in values)} |"
            for name, values in table.items()
        ]
        ranks = [
            1 + sum(table[other][i] < table["gradual-self-paced"][i] for other in names if other in table)
            for i in range(len(rates))
        ]
        lines.append(f"| *rank of self-paced* | {' | '.join(map(str, ranks))} |\n")
    diverged = sorted({(run.method, run.learning_rate) for run in runs if run.diverged})
    if diverged:
        listed = ", ".join(f"{name} at {rate:g}" for name, rate in diverged)
        lines.append(f"Stopped because samples or loss were not finite: {listed}.\n")
    return "\n".join([*lines, "![Schedules over learning rates](digits_rates.png)\n"])


def _shifts(found: Sequence[StudyRun]) -> str:
    runs = [run for run in found if run.part == "shifts"]
    if not runs:
        return ""
    keys = (
        "final_w2",
        "energy_distance",
        "early_stopped_w2",
        "spearman_energy_distance",
        "variance_of_w2_increments",
    )
    lines = ["## Other shifts, and few images\n"]
    lines += _header("group | method", [_TITLES[key] for key in keys])
    lines[-1] = "|---" + lines[-1]
    for group in dict.fromkeys(run.group for run in runs):
        for name in dict.fromkeys(run.method for run in runs):
            cells = [_spread(by_seed(runs, key, name, group=group), key) for key in keys]
            lines.append(f"| {group} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _reading() -> str:
    return """## How to read this

W2 is the exact 2-Wasserstein distance of two sets of 384 samples, which has a large floor; the energy distance is
unbiased. The Spearman correlation is that of step and distance over all evaluations of a run: -1 is a curve that
only falls. The variance of the increments of W2 depends on how often a run is evaluated, here every 50 steps.
Early stopping takes the evaluation whose samples are closest to the *training* images. The distance to the base
drift is taken on the base's own sampling paths: a model that adapts must move away; a smaller number at equal
quality is less forgetting. Diversity is the mean distance of two samples. One small data set and one network: this
is a check of the method and of the program, not evidence for other data.
"""


def _parts(found: Iterable[StudyRun]) -> list[str]:
    return list(dict.fromkeys(run.part for run in found))


def _references(scores: Mapping[str, float]) -> str:
    needed = ("base w2", "base energy_distance", "floor w2", "floor energy_distance")
    if any(name not in scores for name in needed):
        return ""
    base_w2, base_energy, floor_w2, floor_energy = (scores[name] for name in needed)
    return (
        f" The base has W2 {base_w2:.3f} and energy distance {base_energy:.4f}; real images against real images "
        f"{floor_w2:.3f} and {floor_energy:.4f}."
    )


def _header(first: str, titles: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values()))) if values else np.nan


def _number(value: float, key: str) -> str:
    return "-" if not np.isfinite(value) else f"{value * _SCALES.get(key, 1.0):.{_DECIMALS[key]}f}"


def _spread(values: Mapping[int, float], key: str) -> str:
    mean = _number(_mean(values), key)
    return (
        mean if len(values) < 2 else f"{mean} ± {_number(float(np.std(list(values.values()), ddof=1)), key)}"
    )


def _interval(difference: Difference | None, key: str) -> str:
    if difference is None:
        return "-"
    mean = _number(difference.mean, key)
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{_number(difference.low, key)}, {_number(difference.high, key)}]"


def _verdict(difference: Difference | None) -> str:
    if difference is None or difference.low is None:
        return ""
    return {-1: "**lower**", 0: "not decided", 1: "**higher**"}[difference.sign]
