"""The figure of a report card: quality against evaluations, and where on the way the two drifts differ."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.plots import STYLE
from gft_jax.evaluation import NfeCurve, ReportCard

_DRIFT, _BASE, _FLOOR = "#0072B2", "#808080", "#3c3c3c"
_SOLVERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v")
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


@rc_context(STYLE)
def card_figure(card: ReportCard) -> Figure:
    """Four panels: W2 and energy distance against evaluations, velocity variance and drift change along flow time."""
    figure = Figure(figsize=(10.5, 8.6))
    (left, right), (along, change) = figure.subplots(2, 2)
    curve, arrays = card.nfe_curve, card.arrays
    failed = sum(point.failure is not None for point in curve.points)
    remark = f"; {failed} solves failed" if failed else ""
    _quality(left, curve, [point.w2 for point in curve.points], curve.floor_w2)
    left.set_yscale("log")
    shown = [point.w2 for point in curve.points if point.w2 is not None] + [curve.floor_w2]
    # Most points lie near the floor, and with ticks at 1, 2 and 5 often none is near them.
    narrow = max(shown) < 20 * min(shown)
    left.yaxis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 7) if narrow else (1, 2, 5), numticks=99)
    )
    _describe(left, "W₂ to held-out data", "lower is better" + remark, "evaluations of the drift", "W₂")
    energies = [point.energy_distance for point in curve.points]
    _quality(right, curve, energies, curve.floor_energy_distance)
    right.set_yscale("symlog", linthresh=0.01)
    _describe(
        right,
        "Energy distance to held-out data",
        "log scale above 0.01, linear below" + remark,
        "evaluations of the drift",
        "energy distance",
    )
    middle = (arrays.times[1:] + arrays.times[:-1]) / 2
    for values, label, shade in (
        (arrays.velocity_variance, "fine-tuned", _DRIFT),
        (arrays.base_velocity_variance, "base", _BASE),
    ):
        along.plot(middle, values, color=shade, label=label)
    along.set_ylim(bottom=0)
    along.legend()
    _describe(
        along, "Where paths bend", "0 for straight paths at constant speed", "flow time", "E |v - mean v|²"
    )
    change.plot(arrays.compared_times, arrays.velocity_distance, color=_DRIFT, marker="o", markersize=3)
    change.set_ylim(bottom=0)
    _describe(
        change,
        "Distance to the base drift",
        "on the base's sampling paths",
        "flow time",
        "√(E |v - v_base|²)",
    )
    return figure


def _quality(ax: Axes, curve: NfeCurve, values: Sequence[float | None], floor: float) -> None:
    names = list(dict.fromkeys(point.solver for point in curve.points))
    for i, name in enumerate(names):
        chosen = [k for k, point in enumerate(curve.points) if point.solver == name]
        ax.plot(
            [curve.points[k].num_evaluations for k in chosen],
            np.asarray([values[k] for k in chosen], np.float64),  # a failed solve is a gap
            color=_SOLVERS[i % len(_SOLVERS)],
            marker=_MARKERS[i % len(_MARKERS)],
            label=name,
        )
    ax.axhline(floor, color=_FLOOR, linestyle="--", linewidth=1.5, label="floor: real against real data")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(_PLAIN)
    ax.legend()


def _describe(ax: Axes, title: str, subtitle: str, x_label: str, y_label: str) -> None:
    ax.set(title=title, xlabel=x_label, ylabel=y_label)
    ax.yaxis.set_major_formatter(_PLAIN)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.text(0, 1.025, subtitle, transform=ax.transAxes, fontsize=9.5, color="#555555")
