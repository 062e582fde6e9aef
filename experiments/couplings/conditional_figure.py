"""Samples by condition under each coupling, beside real ones, in one figure."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.data.eight_to_moons import NUM_MODES, RADIUS
from experiments.planar import is_planar
from experiments.planar_figures import BARE, backdrop, frame, points
from experiments.plots import colour

_NUM_IMAGES = 8
"""Images of a class."""
_NUM_POINTS = 2000
"""Points of a panel in the plane."""
_SIDE = 2.6
_TITLES: Mapping[str, str] = {
    "moon": "condition: the moon",
    "mode": "condition: the mode of the start",
    "digit": "condition: the digit",
}

Samples = Mapping[str, Mapping[str, np.ndarray]]
"""By task and coupling, and under "real", ``[conditions, num, *event]``."""


@rc_context(BARE)
def comparison_figure(samples: Samples) -> Figure:
    """A row of panels for each task: its real points, and its samples under each coupling, a colour or a row of images
    for each condition."""
    num_columns = max(len(by_coupling) for by_coupling in samples.values())
    figure = Figure(figsize=(_SIDE * num_columns, (_SIDE + 0.25) * len(samples)))
    grid = figure.subplots(len(samples), num_columns, squeeze=False)
    for row, (task, by_coupling) in zip(grid, samples.items(), strict=True):
        real = by_coupling["real"]
        planar = is_planar(real.shape[2:])
        names = ["real", *(name for name in by_coupling if name != "real")]
        for ax, name in zip(row, names, strict=True):
            if planar:
                _scatter(ax, by_coupling[name], real if name != "real" else None)
                if task == "mode":
                    _modes(ax)
                frame(ax, 1.15 * RADIUS)
            else:
                _mosaic(ax, by_coupling[name])
            ax.set_title(name)
        row[0].set_ylabel(_TITLES[task], fontweight="bold", fontsize=10)
    return figure


def _scatter(ax: Axes, by_condition: np.ndarray, real: np.ndarray | None) -> None:
    backdrop(ax, None if real is None else real.reshape(-1, 2), size=3)
    shades = np.repeat(
        [_shade(c, len(by_condition)) for c in range(len(by_condition))], by_condition.shape[1]
    )
    rows = by_condition.reshape(-1, 2)
    # In random order, so that no condition is on top of the others.
    order = np.random.default_rng(0).permutation(len(rows))[:_NUM_POINTS]
    points(ax, rows[order], list(shades[order]), size=4)


def _modes(ax: Axes) -> None:
    """Centres of the source, in the colours of their samples."""
    angle = np.arange(NUM_MODES) * (np.pi / 4)
    shades = [_shade(mode, NUM_MODES) for mode in range(NUM_MODES)]
    ax.scatter(RADIUS * np.cos(angle), RADIUS * np.sin(angle), s=30, marker="s", color=shades, zorder=3)


def _mosaic(ax: Axes, by_condition: np.ndarray) -> None:
    """The first images of each class, not selected, a row for each class."""
    num_classes, _, height, _ = by_condition.shape
    kept = np.pad(by_condition[:, :_NUM_IMAGES], ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1.0)
    image = kept.transpose(0, 2, 1, 3).reshape(num_classes * (height + 2), -1)
    ax.imshow(image, cmap="gray_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")


def _shade(condition: int, num_conditions: int) -> str:
    """Two conditions have colours of other figures; eight go round a circle, as they lie."""
    if num_conditions == 2:
        return colour(str(condition), ("0", "1"))
    return to_hex(colormaps["hsv"](condition / num_conditions))
