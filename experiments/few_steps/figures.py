"""Figures of a few_steps run: quality by evaluations and by what training has cost, and samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments import plots
from experiments.few_steps.scores import EVALUATIONS, energy_at, w2_at
from experiments.planar import is_planar
from experiments.planar_figures import BARE, backdrop, extent, frame, points
from experiments.summary import Record, furthest, runs

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_SIDE = 4
"""Images in a row and column of a panel."""
_LABEL_WIDTH = 1.9
"""Of the names of the methods, in inches."""


def by_evaluations(rows: Sequence[Record], methods: Sequence[str]) -> Figure | None:
    """W2 and energy distance by evaluations, and one-step W2 by cost of training; None of another run."""
    if not _at_end(rows, "base", w2_at):
        return None
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(13.5, 5.6))
        left, middle, right = figure.subplots(1, 3)
        _quality(left, rows, methods, w2_at, "W₂ to held-out data", "W₂")
        _quality(middle, rows, methods, energy_at, "Energy distance to held-out data", "energy distance")
        middle.set_yscale("symlog", linthresh=0.01)
        middle.yaxis.set_major_formatter(_PLAIN)
        _by_cost(right, rows, methods)
        handles = [Line2D([], [], label=name, **plots.look(name, methods)) for name in methods]
        handles.append(Line2D([], [], color=plots.REFERENCE, linestyle=":", label="base, before fine-tuning"))
        handles.append(
            Line2D([], [], color=plots.REFERENCE, linestyle="--", label="floor: real against real")
        )
        seeds = {len(furthest(runs(rows, "evaluation", name))) for name in methods}
        lines = "lines: mean of the seeds; bars and bands: smallest to largest"
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=4,
            title="one seed" if seeds == {1} else lines,
            title_fontsize=10,
        )
    return figure


def _at_end(rows: Sequence[Record], method: str, key: Callable[[int], str]) -> list[list[float]]:
    """Last scores by seed, one for each number of evaluations; nothing of a method without them."""
    ends = [records[-1] for records in furthest(runs(rows, "evaluation", method)).values()]
    return [[end[key(count)] for count in EVALUATIONS] for end in ends if key(EVALUATIONS[0]) in end]


def _quality(
    ax: Axes,
    rows: Sequence[Record],
    methods: Sequence[str],
    key: Callable[[int], str],
    title: str,
    label: str,
) -> None:
    """A number at the end of training against evaluations, side by side where methods are alike."""
    for place, name in enumerate(methods):
        values = np.asarray(_at_end(rows, name, key))
        if values.size:
            mean = values.mean(axis=0)
            spread = np.stack([mean - values.min(axis=0), values.max(axis=0) - mean])
            x = np.asarray(EVALUATIONS) * 2 ** (0.24 * ((place + 0.5) / len(methods) - 0.5))
            ax.errorbar(x, mean, yerr=spread, capsize=2, linewidth=1.2, **plots.look(name, methods))
    for values in _at_end(rows, "base", key)[:1]:
        ax.plot(EVALUATIONS, values, color=plots.REFERENCE, linestyle=":")
    _draw_floor(ax, rows, "w2" if key is w2_at else "energy_distance")
    ax.set_xscale("log", base=2)
    _log_distances(ax)
    ax.xaxis.set_major_locator(FixedLocator(EVALUATIONS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(_PLAIN)
    ax.set(title=title, xlabel="evaluations of the network for a sample", ylabel=label)
    scale = "log scale" if key is w2_at else "log scale above 0.01, linear below"
    remark = f"lower is better; {scale}"
    ax.text(0, 1.025, remark, transform=ax.transAxes, fontsize=9.5, color="#555555")


def _by_cost(ax: Axes, rows: Sequence[Record], methods: Sequence[str]) -> None:
    """One-step W2 of every evaluation, against what training had cost by then."""
    for name in methods:
        scores, cost = (
            plots.curves(rows, "evaluation", name, key) for key in (w2_at(1), "forward_evaluations")
        )
        if scores is not None and cost is not None:
            x, style = cost.values[0] / 1e6, plots.look(name, methods)
            ax.plot(x, scores.values.mean(axis=0), markevery=max(1, len(x) // 8), **style)
            band = scores.values.min(axis=0), scores.values.max(axis=0)
            ax.fill_between(x, *band, color=style["color"], alpha=0.2, linewidth=0)
    _draw_floor(ax, rows, "w2")
    _log_distances(ax)
    ax.set(title="W₂ in one step", xlabel="cost of training, million forward evaluations", ylabel="W₂")
    ax.text(0, 1.025, "lower is better; log scale", transform=ax.transAxes, fontsize=9.5, color="#555555")


def _log_distances(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.yaxis.set_major_formatter(_PLAIN)
    ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_floor(ax: Axes, rows: Sequence[Record], key: str) -> None:
    for row in rows:
        if row["kind"] == "floor":
            ax.axhline(row[key], color=plots.REFERENCE, linestyle="--", linewidth=1.5)
            return


def few_step_panels(
    samples: Mapping[str, np.ndarray], real: np.ndarray | None, methods: Sequence[str]
) -> Figure | None:
    """Samples of the same noise: a row for the base and each method, a column for each number of evaluations.

    Args:
        samples: ``[len(EVALUATIONS), num, *event]`` by name; nothing of another run.
        real: real samples for the background of points in the plane.
        methods: of the run, in order.
    """
    names = [name for name in ("base", *methods) if name in samples]
    if not names:
        return None
    planar = is_planar(samples[names[0]].shape[2:])
    half_width = extent([real]) if planar and real is not None else None
    side = 1.7
    with rc_context(BARE):
        figure = Figure(figsize=(_LABEL_WIDTH + side * len(EVALUATIONS), side * len(names) + 0.35))
        axes: Any = figure.subplots(len(names), len(EVALUATIONS), squeeze=False)
        for row, name in zip(axes, names, strict=True):
            shade = plots.colour(name, methods) if name in methods else plots.REFERENCE
            for ax, x in zip(row, samples[name], strict=True):
                if planar:
                    backdrop(ax, real, size=2)
                    points(ax, x, shade, size=3)
                    frame(ax, extent(list(samples[name])) if half_width is None else half_width)
                else:
                    plots.show_images(ax, x, _SIDE, _SIDE)
            row[0].text(
                *(-0.08, 0.5),
                name.replace("-mean-flow", "\n-mean-flow").lstrip(),
                transform=row[0].transAxes,
                ha="right",
                va="center",
                color=shade,
                fontweight="bold",
                fontsize=10,
            )
        for ax, count in zip(axes[0], EVALUATIONS, strict=True):
            ax.set_title("1 evaluation" if count == 1 else str(count))
    return figure
