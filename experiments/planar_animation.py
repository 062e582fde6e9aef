"""The animation of the cooling: samples of a run in the plane move while the target weight rises."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments.planar_figures import BARE, DARK, backdrop, extent, frame, points, weight_label
from experiments.plots import colour

MAX_FRAMES = 40
_MAX_PANELS = 4
_DOTS_PER_INCH = 100
_MILLISECONDS, _LAST_MILLISECONDS = 160, 2400
_NUM_COLOURS = 64


@rc_context(BARE)
def cooling_animation(
    snapshots: Mapping[str, Mapping[int, np.ndarray]],
    weights: Mapping[str, Mapping[int, float]],
    real: np.ndarray | None,
    methods: Sequence[str],
) -> bytes | None:
    """An animated GIF, a frame for each step of the training whose samples were kept, at most 40.

    A panel shows the samples of a method, up to four methods and those that cool first; below runs the target weight.

    Args:
        snapshots: samples ``[num, 2]`` by method and step, always of the same noise.
        weights: target weights as `target_weights` gives them.
        real: real samples ``[num, 2]`` for the background.
        methods: order of the methods.

    Returns:
        Content of the file; None unless samples of a method that cools were kept at two steps or more.
    """
    cooled = [name for name in methods if name in snapshots and weights.get(name)]
    steps = sorted(set().union(*(snapshots[name] for name in cooled)))
    if len(steps) < 2:
        return None
    others = [name for name in methods if name in snapshots and name not in cooled]
    names = [*cooled, *others][:_MAX_PANELS]
    cooled = [name for name in cooled if name in names]
    shown = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, MAX_FRAMES).round().astype(int))]
    half_width = extent(samples for name in names for samples in snapshots[name].values())

    width = 10.5
    side = min(width / len(names), 4.0)
    figure = Figure(figsize=(width, side + 2.1))
    grid = figure.add_gridspec(2, len(names), height_ratios=(side, 1.0))
    dots, labels = {}, {}
    for column, name in enumerate(names):
        ax = figure.add_subplot(grid[0, column])
        backdrop(ax, real)
        dots[name] = points(ax, np.zeros((1, 2)), colour(name, methods))
        frame(ax, half_width)
        ax.set_title(name, color=colour(name, methods))
        if name in cooled:
            labels[name] = weight_label(ax, 0.0)
            labels[name].set_text("")
    below = figure.add_subplot(grid[1, :])
    for name in cooled:
        below.plot(list(weights[name]), list(weights[name].values()), color=colour(name, methods))
    now = below.axvline(shown[0], color=DARK, linewidth=1.2)
    below.set(xlim=(0, steps[-1]), ylim=(0, 1.08), yticks=(0, 0.5, 1), xlabel="training step")
    below.set_title("target weight w", fontsize=10, fontweight="normal")
    below.tick_params(left=True, bottom=True, labelleft=True, labelbottom=True, labelsize=9)
    title = figure.suptitle("step", x=0.5, fontweight="bold")

    frames = []
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DOTS_PER_INCH)
    for step in shown:
        for name in names:
            if step in snapshots[name]:
                dots[name].set_offsets(snapshots[name][step])
        for name, label in labels.items():
            if step in weights[name]:
                label.set_text(f"w = {weights[name][step]:.2f}")
        now.set_xdata([step, step])
        title.set_text(f"step {step} of {steps[-1]}")
        canvas.draw()
        figure.set_layout_engine("none")  # laid out once, so that nothing jumps
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return _gif(frames)


def _gif(frames: Sequence[Image.Image]) -> bytes:
    # One palette for all frames, without dithering: colours stay, and what does not move costs nothing.
    palette = frames[len(frames) // 2].quantize(_NUM_COLOURS, Image.Quantize.MAXCOVERAGE)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    content = io.BytesIO()
    durations = [_MILLISECONDS] * len(rest) + [_LAST_MILLISECONDS]
    first.save(content, "gif", save_all=True, append_images=rest, duration=durations, loop=0)
    return content.getvalue()
