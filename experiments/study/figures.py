"""Figures of a study."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots import colour
from experiments.study.page import by_seed
from experiments.study.paired import paired_difference
from experiments.study.runs import StudyRun

_CURVES = ("plain", "gradual-linear", "gradual-self-paced", "plain-warmup", "l2-sp", "diff-tuning")
_DIFFERENCES = {
    "spearman_energy_distance": "Spearman(step, energy distance)",
    "variance_of_w2_increments": "variance of W₂ increments",
    "final_w2": "final W₂",
    "energy_distance": "final energy distance",
}


def study_figures(found: Sequence[StudyRun]) -> dict[str, Figure]:
    """Figures by file name; those of parts that the study does not hold are left out."""
    parts = {run.part for run in found if run.numbers}
    figures = {}
    if "controls" in parts:
        controls = [run for run in found if run.part == "controls"]
        figures["digits_curves"] = _curves(controls)
        figures["digits_differences"] = _differences(controls)
    if "rates" in parts:
        figures["digits_rates"] = _rates([run for run in found if run.part == "rates"])
    return figures


def _curves(runs: Sequence[StudyRun]) -> Figure:
    """Energy distance by step and by effective target weight: mean over seeds, band of smallest to largest."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    by_step, by_weight = figure.subplots(1, 2, sharey=True)
    names = [name for name in _CURVES if any(run.method == name for run in runs)]
    for name in names:
        curves = [run.curve for run in runs if run.method == name and not run.diverged]
        steps = np.array([record["step"] for record in curves[0]])
        energy, weight = (
            np.array([[record[key] for record in curve] for curve in curves], dtype=np.float64)
            for key in ("energy_distance", "reached_weight")
        )
        energy = np.maximum(energy, 1e-3)  # an unbiased estimate may be negative; the axis is logarithmic
        look = {"color": colour(name, names), "label": name}
        by_step.plot(steps, energy.mean(0), **look)
        by_step.fill_between(
            steps, energy.min(0), energy.max(0), color=look["color"], alpha=0.15, linewidth=0
        )
        by_weight.plot(weight.mean(0), energy.mean(0), **look)
    by_step.set(yscale="log", xlabel="training step", ylabel="energy distance to held-out images")
    by_weight.set(xlabel="effective target weight that the network has reached", xlim=(0, 1))
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _differences(runs: Sequence[StudyRun]) -> Figure:
    """Gradual-linear minus every other method, paired by seed, with intervals."""
    names = [name for name in dict.fromkeys(run.method for run in runs) if name != "gradual-linear"]
    figure = Figure(figsize=(12, 0.6 + 0.42 * len(names)), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(_DIFFERENCES), sharey=True)
    for ax, (key, title) in zip(axes, _DIFFERENCES.items(), strict=True):
        ours = by_seed(runs, key, "gradual-linear")
        for row, name in enumerate(names):
            difference = paired_difference(ours, by_seed(runs, key, name))
            if difference is None:
                continue
            shade = {-1: "#1b7837", 0: "#777777", 1: "#b2182b"}[difference.sign]
            if difference.low is not None and difference.high is not None:
                ax.plot([difference.low, difference.high], [row, row], color=shade, linewidth=2.5)
            ax.plot(difference.mean, row, "o", color=shade, markersize=5)
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set_title(title, fontsize=10)
        ax.set_xscale("symlog", linthresh=_threshold(key))
        ax.tick_params(axis="x", labelsize=8)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.supxlabel(
        "gradual-linear minus the method, mean over seeds and 95 % interval; left is better", fontsize=10
    )
    return figure


def _threshold(key: str) -> float:
    return 1e-3 if key == "variance_of_w2_increments" else 0.02


def _rates(runs: Sequence[StudyRun]) -> Figure:
    """Final energy distance and variance of the increments by learning rate, a line for each schedule."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2)
    rates = sorted({run.learning_rate for run in runs})
    names = list(dict.fromkeys(run.method for run in runs))
    labels = {
        "energy_distance": "final energy distance",
        "variance_of_w2_increments": "variance of W₂ increments",
    }
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        for name in names:
            values = [list(by_seed(runs, key, name, learning_rate=rate).values()) for rate in rates]
            means = [float(np.mean(some)) if some else np.nan for some in values]
            wide = 3.0 if name == "gradual-self-paced" else 1.5
            ax.plot(rates, means, "o-", color=colour(name, names), label=name, linewidth=wide)
        ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
