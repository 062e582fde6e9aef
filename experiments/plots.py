"""The figures of a run, from its records and samples: every function returns a figure, ``save`` writes it.

No pyplot: a figure belongs to its caller alone, and nothing has to be closed.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.files import write_atomically
from experiments.summary import Record, furthest, runs

# Okabe and Ito's colours, which the common colour deficiencies keep apart; their yellow is too pale for lines.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    # Four more for runs of many methods: of other lightness than their neighbours above.
    *("#5E3C99", "#7A5230", "#8A8B00", "#AD1457"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
REFERENCE = "#3c3c3c"
_MAX_BYTES = 300_000
_TOP_WEIGHT = 1.1
_AS_SET: dict[str, Any] = {"linewidth": 6, "alpha": 0.35}
_AS_REACHED: dict[str, Any] = {"linewidth": 1.2}
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 24,  # room for a subtitle
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#808080",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


class Curves(NamedTuple):
    """One quantity of one method against training step."""

    steps: np.ndarray
    """Steps that all the seeds have ``[steps]``."""
    values: np.ndarray
    """``[seeds, steps]``."""


def curves(rows: Sequence[Record], kind: str, method: str, key: str) -> Curves | None:
    """One quantity of a method, for the seeds that got furthest; None where the run does not hold it."""
    found = []
    for records in furthest(runs(rows, kind, method)).values():
        points = {record["step"]: record[key] for record in records if record.get(key) is not None}
        found += [points] if points else []
    steps = sorted(set.intersection(*map(set, found))) if found else []
    if not steps:
        return None
    values = [[points[step] for step in steps] for points in found]
    return Curves(np.asarray(steps), np.asarray(values, dtype=np.float64))


class Panel(NamedTuple):
    """What a panel shows of the evaluations, and what stands around it."""

    key: str
    title: str
    subtitle: str
    label: str
    floor: str | None = None
    """Key of the floor of this quantity, where it has one."""
    log: bool = False


_CONVERGENCE = (
    Panel("w2", "W₂ to held-out data", "lower is better", "W₂", floor="w2"),
    Panel(
        "energy_distance",
        "Energy distance to held-out data",
        "lower is better",
        "energy distance",
        floor="energy_distance",
        log=True,
    ),
)
_PATHS = (
    Panel("path_length", "Length of the sampling paths", "shorter is straighter", "mean length"),
    Panel("one_step_w2", "W₂ of samples in one step", "lower is better", "W₂", floor="w2"),
)


def family(method: str) -> str:
    """The method of METHOD@STRENGTH, which shares its look with the same method at other strengths."""
    return method.partition("@")[0]


def colour(method: str, methods: Sequence[str]) -> str:
    """Colour of a method in every figure, ``#rrggbb``, by its place among the methods of the run."""
    return _COLOURS[_place(method, methods) % len(_COLOURS)]


def marker(method: str, methods: Sequence[str]) -> str:
    """Marker of a method in every figure, likewise."""
    return _MARKERS[_place(method, methods) % len(_MARKERS)]


def _place(method: str, methods: Sequence[str]) -> int:
    return list(dict.fromkeys(map(family, methods))).index(family(method))


def convergence(rows: Sequence[Record], methods: Sequence[str]) -> Figure | None:
    """W2 and energy distance against training step; None without evaluations."""
    return _evaluations(rows, methods, _CONVERGENCE)


def path_lengths(rows: Sequence[Record], methods: Sequence[str]) -> Figure | None:
    """Path length and one-step W2 against training step; None without evaluations."""
    return _evaluations(rows, methods, _PATHS)


def _evaluations(rows: Sequence[Record], methods: Sequence[str], panels: Sequence[Panel]) -> Figure | None:
    found = {panel: curves_by_method(rows, "evaluation", methods, panel.key) for panel in panels}
    if not any(found.values()):
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.9))
        references: dict[str, Line2D] = {}
        for ax, (panel, by_method) in zip(figure.subplots(1, len(panels)), found.items(), strict=True):
            for method, curve in by_method.items():
                draw(ax, curve, method, methods)
            base = [records[-1].get(panel.key) for records in runs(rows, "evaluation", "base").values()]
            floor = [row.get(panel.floor) for row in rows if row["kind"] == "floor"] if panel.floor else []
            levels = []
            for label, dashes, values in (
                ("base, before fine-tuning", ":", base),
                ("floor: real against real data", "--", floor),
            ):
                values = [value for value in values if value is not None]
                if values:
                    levels.append(float(np.mean(values)))
                    references[label] = ax.axhline(
                        levels[-1], color=REFERENCE, linestyle=dashes, linewidth=1.5, label=label
                    )
            remark = set_vertical_axis(ax, panel, by_method, levels)
            describe(ax, panel.title, panel.subtitle + remark, panel.label)
        legend(figure, found.values(), methods, list(references.values()))
    return figure


def set_vertical_axis(ax: Axes, panel: Panel, by_method: Mapping[str, Curves], levels: list[float]) -> str:
    """Choose the scale and the limits; what a reader must be told about them."""
    values = np.concatenate([levels, *(curve.values.ravel() for curve in by_method.values())])
    values = values[np.isfinite(values)]
    if panel.log and values.size and values.min() > 0:
        ax.set_yscale("log")
        narrow = values.max() < 100 * values.min()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        ax.yaxis.set_major_formatter(_PLAIN)
        ax.yaxis.set_minor_formatter(NullFormatter())
        return "; log scale"
    # A method that starts from noise would squeeze all the others into a line: follow the later part of
    # the curves, and say who is elsewhere before.
    late = [curve.values[:, curve.steps >= curve.steps[-1] / 4].ravel() for curve in by_method.values()]
    focus = np.concatenate([levels, *late])
    focus = focus[np.isfinite(focus)]
    if not focus.size or np.ptp(values) <= 2 * np.ptp(focus):
        return ""
    margin = 0.08 * np.ptp(focus)
    low, high = focus.min() - margin, focus.max() + margin
    ax.set_ylim(low, high)
    outside = []
    for method, curve in by_method.items():
        mean = curve.values.mean(axis=0)
        distance = np.where(np.isfinite(mean), np.maximum(low - mean, mean - high), 0)
        if distance.max() > 0:
            farthest = int(distance.argmax())
            value = float(f"{mean[farthest]:.3g}")  # three digits, and no exponent where there is room
            outside.append(f"; off axis: {method} ({value:g} at step {curve.steps[farthest]})")
    fits = len(outside) == 1 and len(outside[0]) <= 45
    return outside[0] if fits else f"; off axis: parts of {len(outside) or 'some'} curves"


def cooling(rows: Sequence[Record], methods: Sequence[str]) -> Figure | None:
    """Temperature, and target weight as set and as reached, against training step.

    Methods whose temperature is zero throughout are left out; None if that leaves nothing.
    """
    temperatures = {
        method: curve
        for method, curve in curves_by_method(rows, "train", methods, "temperature").items()
        if np.any(curve.values != 0)
    }
    if not temperatures:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.9))
        left, right = figure.subplots(1, 2)
        for method, curve in temperatures.items():
            draw(left, curve, method, methods)
        left.set_yscale("symlog", linthresh=0.1)
        left.yaxis.set_major_formatter(_PLAIN)
        left.set_ylim(bottom=-0.01)
        describe(left, "Temperature", "log scale above 0.1, linear below", "temperature β")
        weights = curves_by_method(rows, "train", list(temperatures), "target_weight")
        reached = curves_by_method(rows, "train", list(temperatures), "effective_target_weight")
        for method, curve in weights.items():
            draw(right, curve, method, methods, marker="", **_AS_SET)
        for method, curve in reached.items():
            draw(right, curve, method, methods, marker="", **_AS_REACHED)
        beyond = sum(
            int(np.sum(np.abs(c.values - _TOP_WEIGHT / 2) > _TOP_WEIGHT / 2)) for c in reached.values()
        )
        remark = f"; {beyond} values of ŵ off axis" if beyond else ""
        right.set_ylim(0, _TOP_WEIGHT)
        describe(right, "Target weight", "w = 1 / (1 + β)" + remark, "weight of the target")
        references = [Line2D([], [], color=REFERENCE, label="w, as set", **_AS_SET)]
        if reached:
            references.append(Line2D([], [], color=REFERENCE, label="ŵ, as reached", **_AS_REACHED))
        legend(figure, (temperatures,), methods, references)
    return figure


def sample_grids(samples: Mapping[str, np.ndarray], methods: Sequence[str], side: int = 8) -> Figure | None:
    """Real and generated images next to each other, ``side`` x ``side`` each, all on the scale [-1, 1].

    Args:
        samples: arrays ``[n, height, width]`` or ``[n, height, width, channels]`` with 1 or 3 channels, under the
            names ``"base"``, ``"real"`` and those of the methods; others are passed over.
        methods: order of the methods.
        side: rows and columns of images in a panel.

    Returns:
        The figure; None if none of the arrays holds images.
    """
    images = {
        name: samples[name]
        for name in ("base", *methods, "real")
        if name in samples and len(samples[name]) and is_image(samples[name].shape[1:])
    }
    if not images:
        return None
    num_columns = len(images) if len(images) <= 4 else 3 if len(images) <= 6 else 4
    num_rows = math.ceil(len(images) / num_columns)
    style: dict[Any, Any] = STYLE | {"axes.titlepad": 6, "figure.constrained_layout.wspace": 0.05}
    with rc_context(style):
        figure = Figure(figsize=(10.5, num_rows * (10.5 / max(num_columns, 2) + 0.35)))
        axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for ax in axes:
            ax.axis("off")
        for ax, (name, array) in zip(axes, images.items(), strict=False):
            show_images(ax, array, side, side)
            ax.set_title("base, before fine-tuning" if name == "base" else name)
    return figure


def is_image(event: tuple[int, ...]) -> bool:
    """Whether an event of this shape can be shown: ``(height, width)``, also with 1 or 3 channels."""
    return len(event) == 2 or (len(event) == 3 and event[-1] in (1, 3))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, at 110 dots per inch, or coarser where that takes more than 300 kB."""
    canvas = FigureCanvasAgg(figure)
    # Without the name of the software the bytes do not depend on its version.
    metadata: Any = {"Software": None}
    for dpi in (110, 80, 55):
        figure.set_dpi(dpi)
        # Figure.savefig draws twice, once for the layout; drawing is nearly all the cost of a report.
        canvas.draw()
        buffer = io.BytesIO()
        imsave(buffer, np.asarray(canvas.buffer_rgba()), format="png", metadata=metadata)
        if buffer.tell() <= _MAX_BYTES:
            break
    write_atomically(path, buffer.getvalue())


def curves_by_method(
    rows: Sequence[Record], kind: str, methods: Sequence[str], key: str
) -> dict[str, Curves]:
    """`curves` of those methods for which the run holds them."""
    found = {method: curves(rows, kind, method, key) for method in methods}
    return {method: curve for method, curve in found.items() if curve is not None}


def look(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """Colour and marker of a method, the same in every figure."""
    return {"color": colour(method, methods), "marker": marker(method, methods)}


def draw(ax: Axes, curve: Curves, method: str, methods: Sequence[str], **changes: Any) -> None:
    """Draw a curve: the mean of the seeds, and a band from the smallest to the largest."""
    # Markers on every method's own steps, so that curves on top of each other stay told apart.
    every = max(1, len(curve.steps) // 8)
    offset = every * methods.index(method) // len(methods)
    style = look(method, methods) | changes
    ax.plot(curve.steps, curve.values.mean(axis=0), markevery=(offset, every), **style)
    if len(curve.values) > 1:
        band = curve.values.min(axis=0), curve.values.max(axis=0)
        ax.fill_between(curve.steps, *band, color=style["color"], alpha=0.2, linewidth=0)


def describe(ax: Axes, title: str, subtitle: str, label: str) -> None:
    """Title and labels of a panel whose horizontal axis is the training step."""
    ax.set(title=title, xlabel="training step", ylabel=label)
    ax.text(0, 1.025, subtitle, transform=ax.transAxes, fontsize=9.5, color="#555555")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def legend(
    figure: Figure, found: Iterable[Mapping[str, Curves]], methods: Sequence[str], references: list[Line2D]
) -> None:
    """Legend of a figure: the methods that are in it, other lines, and what lines and bands are."""
    num_seeds = {name: len(curve.values) for by_method in found for name, curve in by_method.items()}
    names = [method for method in methods if method in num_seeds]
    counts = set(num_seeds.values())
    if not counts:
        figure.legend(handles=references, loc="outside lower center", ncols=4)
        return
    handles = []
    for name in names:
        label = name if len(counts) == 1 else f"{name} ({_seeds(num_seeds[name])})"
        handles.append(Line2D([], [], label=label, **look(name, methods)))
    lines = f"lines: mean of {_seeds(max(counts))}; bands: smallest to largest"
    if len(counts) > 1:
        lines = "lines: mean of the seeds; bands: smallest to largest"
    figure.legend(
        handles=[*handles, *references],
        loc="outside lower center",
        ncols=min(4, len(handles) + len(references)),
        title="one seed" if counts == {1} else lines,
        title_fontsize=10,
    )


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def show_images(ax: Axes, images: np.ndarray, num_rows: int, num_columns: int) -> None:
    """The first images of an array, in rows, on the scale [-1, 1]."""
    shown = mosaic(np.asarray(images, dtype=np.float32), num_rows, num_columns)
    if shown.ndim == 2:
        ax.imshow(shown, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    else:
        ax.imshow(np.clip((shown + 1) / 2, 0, 1), interpolation="nearest")
    ax.set_axis_off()


def mosaic(images: np.ndarray, num_rows: int, num_columns: int) -> np.ndarray:
    """Images side by side, in rows, with white gaps: one image; without channels where there is one."""
    height, width, *channels = images.shape[1:]
    if channels == [1]:
        images, channels = images[..., 0], []
    gap = max(1, height // 16)
    size = num_rows * (height + gap) - gap, num_columns * (width + gap) - gap
    whole = np.ones((*size, *channels), dtype=np.float32)
    for index, image in enumerate(images[: num_rows * num_columns]):
        top, left = (index // num_columns) * (height + gap), (index % num_columns) * (width + gap)
        whole[top : top + height, left : left + width] = image
    return whole
