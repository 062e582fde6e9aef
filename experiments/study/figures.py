"""Figures of a study."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots import STYLE, colour
from experiments.study.findings import OURS, compared
from experiments.study.measures import MAX_GAP, MEASURES, columns
from experiments.study.paired import paired_difference
from experiments.study.runs import StudyRun, by_seed

_CURVES = ("plain", OURS, "gradual-self-paced", "plain-warmup", "plain-geometric", "diff-tuning")
"""Methods that aim at the law of the new data, started at the base."""
_DIFFERENCES = {
    "spearman_energy_distance": 0.1,
    "variance_of_w2_increments": 1e-3,
    "late_w2": 0.02,
    "late_energy_distance": 0.01,
}
"""Measures, and up to where their axis is linear."""
_RATES = ("energy_distance", "variance_of_w2_increments")
_SMALLEST = {"energy_distance": 1e-3, "variance_of_w2_increments": 1e-5}
_SHADES = {-1: "#0072b2", 0: "#8c8c8c", 1: "#d55e00", None: "#8c8c8c"}


def study_figures(found: Sequence[StudyRun]) -> dict[str, Figure]:
    """Figures by file name; those of parts that the study does not hold are left out."""
    ended = [run for run in found if run.numbers]
    controls, rates = compared(ended), [run for run in ended if run.part == "rates"]
    with rc_context(STYLE):
        figures = {}
        if controls:
            figures["digits_curves"] = _curves(controls)
            figures["digits_differences"] = _differences(controls)
        if rates:
            figures["digits_rates"] = _rates(rates)
        return figures


def _curves(runs: Sequence[StudyRun]) -> Figure:
    """Energy distance by step and by effective target weight."""
    figure = Figure(figsize=(11, 5.2))
    by_step, by_weight = figure.subplots(1, 2, sharey=True)
    names = [name for name in _CURVES if any(run.method == name for run in runs)]
    for name in names:
        values = np.array([columns(run.curve) for run in runs if run.method == name])
        (steps, _, energy, weight) = values.mean(axis=0)
        look = {"color": colour(name, names), "label": name}
        by_step.plot(steps, _positive(energy), linewidth=1.8, **look)
        low, high = values[:, 2].min(axis=0), values[:, 2].max(axis=0)
        by_step.fill_between(steps, np.maximum(low, 1e-3), high, color=look["color"], alpha=0.15, linewidth=0)
        # No line where nothing was measured: a break before each jump.
        jumps = 1 + np.flatnonzero(np.abs(np.diff(weight)) > MAX_GAP)
        by_weight.plot(
            np.insert(weight, jumps, np.nan),
            np.insert(_positive(energy), jumps, np.nan),
            "o-",
            markersize=3,
            linewidth=1,
            **look,
        )
    by_step.set(yscale="log", xlabel="training step", ylabel="energy distance to held-out images")
    by_step.set_title("by step: mean and range over seeds", fontsize=11)
    by_weight.set(xlabel="effective target weight ŵ that the network has reached", xlim=(-0.02, 1.02))
    by_weight.set_title("by ŵ: means over seeds, a dot for each evaluation", fontsize=11)
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _positive(values: np.ndarray) -> np.ndarray:
    """An unbiased estimate may be negative, which a logarithmic axis cannot show."""
    return np.where(values > 0, values, np.nan)


def _differences(runs: Sequence[StudyRun]) -> Figure:
    """Gradual-linear minus every other method, paired by seed, with intervals."""
    names = [name for name in dict.fromkeys(run.method for run in runs) if name != OURS]
    figure = Figure(figsize=(12, 1.3 + 0.42 * len(names)))
    axes: Sequence[Axes] = np.atleast_1d(figure.subplots(1, len(_DIFFERENCES), sharey=True)).tolist()
    for ax, (key, threshold) in zip(axes, _DIFFERENCES.items(), strict=True):
        ours = by_seed(runs, key, OURS)
        for row, name in enumerate(names):
            difference = paired_difference(ours, by_seed(runs, key, name))
            if difference is None:
                continue
            shade = _SHADES[difference.sign]
            if difference.low is not None and difference.high is not None:
                ax.plot([difference.low, difference.high], [row, row], color=shade, linewidth=5, alpha=0.4)
            ax.plot(difference.mean, row, "|", color=shade, markersize=11, markeredgewidth=2)
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set_title(MEASURES[key].title.removesuffix(" · 10³"), fontsize=10)
        ax.set_xscale("symlog", linthresh=threshold)
        widest = 2 * max(map(abs, ax.get_xlim()))
        ax.set_xlim(-widest, widest)
        ax.set_xticks([-threshold, 0.0, threshold], [f"{-threshold:g}", "0", f"{threshold:g}"])
        ax.tick_params(axis="x", labelsize=8)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(
        "gradual-linear minus the method: mean over seeds and 95 % interval; left is better; linear between the "
        "marks, logarithmic beyond",
        fontsize=9,
    )
    return figure


def _rates(runs: Sequence[StudyRun]) -> Figure:
    """Final energy distance and variance of the increments by learning rate, a line for each schedule."""
    figure = Figure(figsize=(11, 4.8))
    axes: Sequence[Axes] = figure.subplots(1, len(_RATES)).tolist()
    rates = sorted({run.learning_rate for run in runs})
    names = list(dict.fromkeys(run.method for run in runs))
    for ax, key in zip(axes, _RATES, strict=True):
        for name in names:
            shade = colour(name, names)
            values = [list(by_seed(runs, key, name, learning_rate=rate).values()) for rate in rates]
            means = np.array([np.mean(some) if some else np.nan for some in values])
            wide = 3.0 if name == "gradual-self-paced" else 1.5
            ax.plot(rates, np.maximum(means, _SMALLEST[key]), "-", color=shade, label=name, linewidth=wide)
            for rate, some in zip(rates, values, strict=True):
                heights = np.maximum(some, _SMALLEST[key])
                ax.plot([rate] * len(some), heights, "o", color=shade, markersize=4, alpha=0.6)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="learning rate",
            ylabel=MEASURES[key].title.removesuffix(" · 10³"),
        )
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.set_xticks([], minor=True)
        ax.set_title(f"line: mean, dots: seeds; below {_SMALLEST[key]:g} drawn there", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
