"""The figures of a reward run: what reward costs, method by method, and samples at every strength."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.planar import is_planar
from experiments.planar_figures import BARE, backdrop, extent, frame, points
from experiments.plots import REFERENCE, STYLE, colour, family, is_image, marker, show_images
from experiments.summary import Record, furthest, runs

_NUM_ROWS, _NUM_COLUMNS = 3, 5
"""Images in a panel."""
_NUM_PANELS = 6
"""Panels side by side, where a method has no more strengths."""


_STYLE: dict[Any, Any] = STYLE | {"figure.constrained_layout.hspace": 0.06}


class _Panel(NamedTuple):
    x: str
    y: str
    title: str
    subtitle: str
    x_label: str
    y_label: str


_PANELS = (
    _Panel(
        "displacement",
        "reward",
        "Reward against displacement",
        "up and left is better",
        "mean squared distance, same noise",
        "mean reward",
    ),
    _Panel(
        "base_energy_distance",
        "reward",
        "Reward against distance between laws",
        "up and left is better",
        "energy distance to the base",
        "mean reward",
    ),
    _Panel(
        "reward", "vendi", "Diversity against reward", "up and right is better", "mean reward", "Vendi score"
    ),
    _Panel(
        "reward",
        "precision",
        "Faithfulness against reward",
        "up and right is better",
        "mean reward",
        "share of samples near data",
    ),
    _Panel(
        "reward",
        "reward_gap",
        "Reward that a judge does not see",
        "down and right is better",
        "mean reward",
        "reward minus that of another classifier",
    ),
    _Panel(
        "reward",
        "class_energy_distance",
        "Distance to the wanted class",
        "down and right is better",
        "mean reward",
        "energy distance to real images",
    ),
    _Panel(
        "reward",
        "equal_reward_energy_distance",
        "Distance to the tilted law of equal reward",
        "down and right is better",
        "mean reward",
        "energy distance",
    ),
)


def pareto(rows: Sequence[Record], methods: Sequence[str]) -> Figure | None:
    """Reward against distance to the base, and diversity against reward: a line for each method over its strengths.

    Points are means over the seeds that got furthest, bars reach from the smallest to the largest. A panel whose
    quantities the run does not hold is left out; None without evaluations.

    Args:
        rows: of the log.
        methods: runs, METHOD@STRENGTH, in the order of the report.
    """
    lasts = {name: _last(rows, name) for name in methods}
    names = [name for name in methods if lasts[name]]
    held = set().union(*(row.keys() for name in names for row in lasts[name]))
    panels = [panel for panel in _PANELS if {panel.x, panel.y} <= held]
    if not panels:
        return None
    with rc_context(_STYLE):
        num_rows = -(-len(panels) // 2)
        has_cell = len(panels) % 2 == 1  # for the legend
        figure = Figure(figsize=(10.5, 4.3 * num_rows + (0 if has_cell else 1.2)))
        axes = figure.subplots(num_rows, 2, squeeze=False).ravel()
        references: dict[str, Line2D] = {}
        for ax, panel in zip(axes, panels, strict=False):
            for method in dict.fromkeys(map(family, names)):
                of_method = [lasts[name] for name in sorted(names, key=_strength) if family(name) == method]
                _draw_line(ax, panel, of_method, method, methods)
            references |= _draw_references(ax, panel, rows)
            ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
            ax.text(0, 1.025, panel.subtitle, transform=ax.transAxes, fontsize=9.5, color="#555555")
        for ax in axes[len(panels) :]:
            ax.axis("off")
        handles = [
            Line2D([], [], label=method, color=colour(method, methods), marker=marker(method, methods))
            for method in dict.fromkeys(map(family, names))
        ]
        counts = {len(lasts[name]) for name in names}
        seeds = "one seed" if counts == {1} else "points: mean of the seeds\nbars: smallest to largest"
        place = {"loc": "center", "ncols": 2} if has_cell else {"loc": "outside lower center", "ncols": 4}
        (axes[-1] if has_cell else figure).legend(
            handles=[*handles, *references.values()],
            title=f"lines: one method over its strengths\n{seeds}",
            title_fontsize=10,
            **place,
        )
    return figure


def by_strength(samples: Mapping[str, np.ndarray], methods: Sequence[str]) -> Figure | None:
    """Samples of the base, real ones, and those of each method from its weakest strength to its strongest.

    Args:
        samples: points ``[num, 2]`` or images, by run, ``"base"`` and ``"real"``.
        methods: runs, METHOD@STRENGTH, in the order of the report.

    Returns:
        The figure; None where there are no samples of a run that can be shown.
    """
    names = [name for name in methods if name in samples]
    if not names:
        return None
    event = samples[names[0]].shape[1:]
    if not (is_planar(event) or is_image(event)):
        return None
    groups = [[name for name in ("base", "real") if name in samples]]
    groups += [_weak_to_strong(names, method) for method in dict.fromkeys(map(family, names))]
    width = max(map(len, groups))
    per_row = max(1, _NUM_PANELS // width)
    side = 10.5 / max(per_row * width, 4)
    num_rows = -(-len(groups) // per_row)
    height = side if is_planar(event) else side * _NUM_ROWS / _NUM_COLUMNS * event[0] / event[1]
    with rc_context(BARE):
        figure = Figure(figsize=(side * per_row * width, num_rows * (height + 0.3)))
        axes = figure.subplots(num_rows, per_row * width, squeeze=False)
        half_width = extent(samples[name] for name in names) if is_planar(event) else 0.0
        for ax in axes.ravel():
            ax.axis("off")
        for group, line in zip(groups, axes.reshape(-1, width), strict=False):
            for name, ax in zip(group, line, strict=False):
                shade = colour(name, methods) if name in names else REFERENCE
                ax.axis("on")
                if is_planar(event):
                    backdrop(ax, samples.get("base"), size=2)
                    points(ax, samples[name], shade, size=4)
                    frame(ax, half_width)
                else:
                    show_images(ax, samples[name], _NUM_ROWS, _NUM_COLUMNS)
                ax.set_title(name, color=shade, fontsize=9)
    return figure


def _last(rows: Sequence[Record], method: str) -> list[Record]:
    return [records[-1] for records in furthest(runs(rows, "evaluation", method)).values()]


def _strength(run: str) -> float:
    return float(run.partition("@")[2])


def _weak_to_strong(names: Sequence[str], method: str) -> list[str]:
    """Runs of a method; a small lam is strong, and so is a large tau."""
    found = sorted((name for name in names if family(name) == method), key=_strength)
    return found if method == "orw" else found[::-1]


def _draw_line(
    ax: Axes, panel: _Panel, of_method: Sequence[Sequence[Record]], method: str, methods: Sequence[str]
) -> None:
    values = [
        np.array([(row[panel.x], row[panel.y]) for row in lasts if {panel.x, panel.y} <= row.keys()])
        for lasts in of_method
    ]
    values = [pairs for pairs in values if len(pairs)]
    if not values:
        return
    mean = np.array([pairs.mean(axis=0) for pairs in values]).T
    low = mean - np.array([pairs.min(axis=0) for pairs in values]).T
    high = np.array([pairs.max(axis=0) for pairs in values]).T - mean
    several = any(len(pairs) > 1 for pairs in values)
    look: dict[str, Any] = {"color": colour(method, methods), "marker": marker(method, methods)}
    bars: dict[str, Any] = (
        {"xerr": [low[0], high[0]], "yerr": [low[1], high[1]], "elinewidth": 1.0} if several else {}
    )
    ax.errorbar(*mean, markersize=5, linewidth=1.4, alpha=0.9, **look, **bars)


def _draw_references(ax: Axes, panel: _Panel, rows: Sequence[Record]) -> dict[str, Line2D]:
    """What the methods are seen against: the base, real samples, the tilted laws of the data."""
    found: dict[str, Line2D] = {}
    tilted = sorted((row for row in rows if row["kind"] == "tilted"), key=lambda row: row["strength"])
    if tilted and {panel.x, panel.y} <= tilted[0].keys():
        label = "tilted laws of the data, all λ"
        x, y = ([row[key] for row in tilted] for key in (panel.x, panel.y))
        (found[label],) = ax.plot(x, y, color="#a0a0a0", linewidth=5, alpha=0.5, zorder=1, label=label)
    base, floors = _last(rows, "base"), [row for row in rows if row["kind"] == "floor"]
    for label, sign, row in (
        ("base", "*", base[0] if base else {}),
        ("real samples", "+", floors[0] if floors else {}),
    ):
        if {panel.x, panel.y} <= row.keys():
            (found[label],) = ax.plot(
                row[panel.x],
                row[panel.y],
                color=REFERENCE,
                marker=sign,
                markersize=12,
                linestyle="none",
                zorder=5,
                label=label,
            )
    return found
