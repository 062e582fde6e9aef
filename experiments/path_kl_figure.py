"""The figure of the path KL: how far the process has moved from the base's."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments import plots
from experiments.summary import Record

_TOP_WEIGHT = 1.1
_PANEL = plots.Panel("path_kl", "Path KL to the base", "KL(P ‖ P_base), 0 at the base", "path KL (nats)")
_AS_SQUARE: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2}


def path_kls(rows: Sequence[Record], methods: Sequence[str]) -> Figure | None:
    """Path KL against training step, and against the effective target weight; None where the log has none."""
    # A run that was begun without it may have it from some step or seed on.
    rows = [row for row in rows if row["kind"] != "evaluation" or row.get("path_kl") is not None]
    found = plots.curves_by_method(rows, "evaluation", methods, "path_kl")
    if not found:
        return None
    temperatures = plots.curves_by_method(rows, "train", list(found), "temperature")
    cooled = [method for method, curve in temperatures.items() if np.ptp(curve.values) > 0]
    weights = plots.curves_by_method(rows, "evaluation", list(found), "reached_weight")
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(10.5, 4.9))
        by_step, by_weight = figure.subplots(1, 2, sharey=True)
        for method, curve in found.items():
            plots.draw(by_step, curve, method, methods)
        base = by_step.axhline(0, color=plots.REFERENCE, linestyle=":", linewidth=1.5, label="base")
        remark = plots.set_vertical_axis(by_step, _PANEL, found, [0.0])
        plots.describe(by_step, _PANEL.title, _PANEL.subtitle + remark, _PANEL.label)
        references = [base]
        for method, weight in weights.items():
            x, y = weight.values.mean(axis=0), found[method].values.mean(axis=0)
            # The others are beyond most weights at once, and a line would only tangle what they do there.
            line = {} if method in cooled else {"linestyle": "none"}
            by_weight.plot(x, y, markersize=3.5, **plots.look(method, methods) | line)
            if method in cooled:
                _draw_parabola(by_weight, x[-1], y[-1], plots.colour(method, methods))
        if cooled:
            references.append(
                Line2D([], [], color=plots.REFERENCE, label="in proportion to ŵ²", **_AS_SQUARE)
            )
        by_weight.axhline(0, color=plots.REFERENCE, linestyle=":", linewidth=1.5)
        plots.describe(by_weight, "The same by weight reached", "an evaluation each, mean of the seeds", "")
        by_weight.set(xlabel="effective target weight ŵ", xlim=(0, _TOP_WEIGHT))
        by_weight.xaxis.set_major_locator(MaxNLocator(6))
        by_weight.tick_params(labelleft=False)
        plots.legend(figure, (found,), methods, references)
    return figure


def _draw_parabola(ax: Axes, weight: float, value: float, shade: str) -> None:
    """In proportion to the square of the weight, up to a last evaluation."""
    if weight > 0 and math.isfinite(value):
        grid = np.linspace(0, weight, 50)
        ax.plot(grid, value * (grid / weight) ** 2, color=shade, **_AS_SQUARE)
