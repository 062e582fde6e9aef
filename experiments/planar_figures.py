"""Figures of samples in the plane: where they are, on which paths they came, and how they moved in training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from experiments.planar import is_planar
from experiments.plots import STYLE, colour
from experiments.summary import Record, runs

GREY = "#b4b4b4"
DARK = "#3c3c3c"
_NUM_COLUMNS = 6
BARE: dict[Any, Any] = STYLE | {
    "axes.titlepad": 6,
    "axes.titlesize": 11,
    "axes.spines.top": True,
    "axes.spines.right": True,
    "axes.edgecolor": "#d0d0d0",
    "axes.grid": False,
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.labelbottom": False,
    "ytick.labelleft": False,
    "figure.constrained_layout.wspace": 0.02,
    "figure.constrained_layout.hspace": 0.02,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


@rc_context(BARE)
def scatters(samples: Mapping[str, np.ndarray], methods: Sequence[str]) -> Figure | None:
    """Samples of the base, of each method and real ones, ``[num, 2]`` under these names; None without any."""
    names = [
        name
        for name in ("base", *methods, "real")
        if name in samples and len(samples[name]) and is_planar(samples[name].shape[1:])
    ]
    if not names:
        return None
    half_width = extent(samples[name] for name in names)
    figure, axes = _panels(len(names))
    for ax, name in zip(axes, names, strict=True):
        if name != "real":
            backdrop(ax, samples.get("real"))
        points(ax, samples[name], _shade(name, methods))
        frame(ax, half_width)
        ax.set_title(name)
    return figure


@rc_context(BARE)
def path_panels(
    paths: Mapping[str, np.ndarray], real: np.ndarray | None, methods: Sequence[str]
) -> Figure | None:
    """Sampling paths ``[num_steps + 1, num, 2]`` of the base and of each method; None without any."""
    names = [name for name in ("base", *methods) if name in paths]
    if not names:
        return None
    half_width = extent(paths[name].reshape(-1, 2) for name in names)
    figure, axes = _panels(len(names))
    for ax, name in zip(axes, names, strict=True):
        backdrop(ax, real)
        shade = _shade(name, methods)
        ax.add_collection(
            LineCollection(list(np.swapaxes(paths[name], 0, 1)), colors=shade, linewidths=0.8, alpha=0.7)
        )
        ax.scatter(*paths[name][0].T, s=9, facecolors="white", edgecolors=DARK, linewidths=0.6, zorder=3)
        ax.scatter(*paths[name][-1].T, s=11, color=shade, linewidths=0, zorder=4)
        frame(ax, half_width)
        ax.set_title(name)
    return figure


@rc_context(BARE)
def moving_samples(
    snapshots: Mapping[str, Mapping[int, np.ndarray]],
    weights: Mapping[str, Mapping[int, float]],
    real: np.ndarray | None,
    methods: Sequence[str],
) -> Figure | None:
    """Samples of each method, a row, at up to six steps of the training, a column; None without any.

    Args:
        snapshots: samples ``[num, 2]`` by method and step.
        weights: target weights as `target_weights` gives them.
        real: real samples ``[num, 2]`` for the background.
        methods: order of the methods.
    """
    names = [name for name in methods if name in snapshots]
    if not names:
        return None
    every = sorted(set().union(*(snapshots[name] for name in names)))
    # Methods with steps of their own are shown at the same parts of these.
    alike = any(len(snapshots[name]) == len(every) for name in names)
    steps = {name: _some(every if alike else sorted(snapshots[name])) for name in names}
    half_width = extent(points for name in names for points in snapshots[name].values())
    side, num = 10.5 / _NUM_COLUMNS, max(map(len, steps.values()))
    figure = Figure(figsize=(side * num + 0.3, (side if alike else side + 0.2) * len(names) + 0.35))
    axes = figure.subplots(len(names), num, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        size = min(10.0, 170 / len(name))  # of long names as much as fits beside a panel
        row[0].set_ylabel(name, color=colour(name, methods), fontweight="bold", fontsize=size)
        for ax in row:
            frame(ax, half_width)
        for ax, step in zip(row, steps[name], strict=False):
            if step in snapshots[name]:
                backdrop(ax, real, size=2)
                points(ax, snapshots[name][step], colour(name, methods), size=3)
            if step in weights.get(name, {}):
                weight_label(ax, weights[name][step])
            if name == names[0] or not alike:
                ax.set_title(f"step {step}")
    return figure


def _some(steps: Sequence[int]) -> list[int]:
    """Up to six of the steps, evenly spread, the first and the last among them."""
    index = np.unique(np.linspace(0, len(steps) - 1, _NUM_COLUMNS).round().astype(int))
    return [steps[each] for each in index]


def target_weights(rows: Sequence[Record], methods: Sequence[str], seed: int) -> dict[str, dict[int, float]]:
    """By method that cools and by step, the target weight ``w = 1 / (1 + temperature)`` of the update before it."""
    found = {
        name: {
            row["step"]: 1.0 / (1.0 + row["temperature"]) for row in runs(rows, "train", name).get(seed, [])
        }
        for name in methods
    }
    return {
        name: weights for name, weights in found.items() if any(weight < 1.0 for weight in weights.values())
    }


def extent(arrays: Iterable[np.ndarray]) -> float:
    """Half the width of a square about the origin that holds all points but for far outliers."""
    distances = np.abs(np.concatenate(list(arrays))).max(axis=1)
    return float(1.06 * min(distances.max(), 1.3 * np.quantile(distances, 0.99)))


def frame(ax: Axes, half_width: float) -> None:
    """Limits a panel to a square, drawn as one."""
    ax.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width), aspect="equal")


def backdrop(ax: Axes, real: np.ndarray | None, size: float = 4) -> None:
    """Real samples, pale, behind the others; nothing where there are none."""
    if real is not None:
        ax.scatter(*real.T, s=size, color=GREY, alpha=0.5, linewidths=0, zorder=1)


def points(ax: Axes, samples: np.ndarray, shade: str | Sequence[str], size: float = 6) -> Any:
    """Samples as dots, of one colour or each of its own; returns the collection, whose offsets can be moved."""
    return ax.scatter(*samples.T, s=size, color=shade, alpha=0.7, linewidths=0, zorder=2)


def weight_label(ax: Axes, weight: float) -> Any:
    """The target weight in the corner of a panel; returns the text, which can be changed."""
    return ax.text(0.04, 0.96, f"w = {weight:.2f}", transform=ax.transAxes, va="top", fontsize=8, color=DARK)


def _shade(name: str, methods: Sequence[str]) -> str:
    return colour(name, methods) if name in methods else DARK


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Square panels in as few rows as leave them large enough to be read."""
    num_columns = count if count <= 5 else 4
    num_rows = -(-count // num_columns)
    side = 10.5 / max(num_columns, 2)
    figure = Figure(figsize=(side * num_columns, num_rows * (side + 0.3)))
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.axis("off")
    axes[0].tick_params(left=True, bottom=True, labelleft=True, labelbottom=True, labelsize=8)
    return figure, list(axes[:count])
