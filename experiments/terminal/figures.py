"""What the report of a terminal run has beyond that of any adaptation: a column, and a figure over the cooling."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from experiments import plots
from experiments.summary import Column, Record

_KEY = "end_law_energy_distance"
_PANEL = plots.Panel(
    _KEY, "Distance to the law q^w p^(1 - w)", "w of the step; lower is better", "energy distance"
)
_ROWS = {
    "target_rows": ("target samples, exp(-(1 - w) l)", "-"),
    "base_rows": ("base samples, exp(w l)", "--"),
}


def _mean_over_run(records: list[Record]) -> float | None:
    values = [record[_KEY] for record in records if record.get(_KEY) is not None]
    return float(np.mean(values)) if values else None


TERMINAL_COLUMNS = (
    Column(
        "mean_end_law_energy_distance",
        "to q^w p^(1-w)",
        "to q^w p^(1-w)",
        "Over the cooling",
        "lower",
        4,
        1,
        "Energy distance of the samples to the law q^w p^(1 - w) of the step's target weight w, at which the terminal "
        "objective aims: the mean over all evaluations.",
        _mean_over_run,
    ),
)


def end_law(rows: Sequence[Record], methods: Sequence[str]) -> Figure | None:
    """Distance to the law that the terminal objective aims at, and effective sample sizes; None of another run."""
    sizes = sorted(
        (row for row in rows if row["kind"] == "effective sample size"), key=lambda row: row["target_weight"]
    )
    if not sizes:
        return None
    found = plots.curves_by_method(rows, "evaluation", methods, _KEY)
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(10.5, 4.9))
        *left, right = figure.subplots(1, 2 if found else 1, squeeze=False).ravel()
        for ax in left:
            for method, curve in found.items():
                plots.draw(ax, curve, method, methods)
            remark = plots.set_vertical_axis(ax, _PANEL, found, [0.0])
            plots.describe(ax, _PANEL.title, _PANEL.subtitle + remark, _PANEL.label)
        references = _draw_sizes(right, sizes)
        shares = _draw_batches(right, rows, methods)
        plots.legend(figure, (found, shares), methods, references)
    return figure


def _draw_sizes(ax: Axes, sizes: Sequence[Record]) -> list[Line2D]:
    weights = [row["target_weight"] for row in sizes]
    ax.set(title="Effective sample size", xlabel="target weight w", ylabel="share of the rows", yscale="log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.text(
        0, 1.025, "log scale; dots: training batches", transform=ax.transAxes, fontsize=9.5, color="#555555"
    )
    return [
        ax.plot(weights, [row[key] for row in sizes], dashes, color=plots.REFERENCE, label=label)[0]
        for key, (label, dashes) in _ROWS.items()
    ]


def _draw_batches(ax: Axes, rows: Sequence[Record], methods: Sequence[str]) -> dict[str, plots.Curves]:
    """Dots for the methods whose batches have weights; what is shown, by step."""
    shares = plots.curves_by_method(rows, "train", methods, "effective_share")
    for method, share in shares.items():
        weight = plots.curves(rows, "train", method, "target_weight")
        if weight is not None:
            x, y = weight.values.mean(axis=0), share.values.mean(axis=0)
            ax.plot(x, y, linestyle="none", markersize=3.5, **plots.look(method, methods))
    return shares
