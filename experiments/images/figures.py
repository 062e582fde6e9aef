"""Figures of images by training step."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.data.image_rows import NUM_SHOWN
from experiments.planar_figures import BARE
from experiments.plots import colour, is_image, mosaic

_NUM_ROWS = 6


def is_image_batch(samples: np.ndarray) -> bool:
    """Whether samples are images or latents, ``[num, height, width]`` or with channels."""
    return samples.ndim in (3, 4)


def as_shown(samples: np.ndarray, real: np.ndarray, kind: str | None) -> np.ndarray:
    """Samples as images on the scale [-1, 1] with one channel or three.

    Of latents the first three channels, as colours, or of fewer the first; they are divided by the 99th percentile of
    the real ones' absolute values. Images with transparency are laid on white.

    Args:
        samples: ``[num, height, width]``, or with channels; others are left as they are.
        real: real ones.
        kind: "images" or "latents"; None where nobody said: what has other channels than images is latents then.
    """
    if not is_image_batch(samples) or samples.ndim == 3:
        return samples
    if kind == "latents" or (kind is None and not is_image(samples.shape[1:])):
        first = samples[..., : 3 if samples.shape[-1] >= 3 else 1]
        return first / max(float(np.quantile(np.abs(real), 0.99)), 1e-6)
    if samples.shape[-1] != 4:
        return samples
    opacity = np.clip((samples[..., 3:] + 1) / 2, 0, 1)
    return opacity * samples[..., :3] + (1 - opacity)


@rc_context(BARE)
def images_by_step(
    snapshots: Mapping[str, Mapping[int, np.ndarray]],
    real: np.ndarray | None,
    methods: Sequence[str],
    classes: Sequence[str],
    kind: str | None,
) -> Figure | None:
    """Samples of the same noise: a panel for each method, in it a row for each of up to six steps, last real images.

    Args:
        snapshots: samples ``[num, height, width, channels]`` by method and step.
        real: real ones, of the same classes in the same order.
        methods: order of the methods.
        classes: names of the classes of the columns; none where there are none.
        kind: what they are, as of `as_shown`.

    Returns:
        The figure; None where there are no samples, or they are no images.
    """
    names = [name for name in methods if name in snapshots]
    if not names or real is None or not is_image_batch(real):
        return None
    rows = {name: _some_steps(snapshots[name]) for name in names}
    most = max(len(steps) for steps in rows.values()) + 1
    num = min(NUM_SHOWN, len(real))
    width = 10.5 if len(names) > 1 else 6.0
    columns = min(2, len(names))
    height = width / columns * (most + 0.8) / num
    figure = Figure(figsize=(width, height * -(-len(names) // columns)))
    axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.axis("off")
    for ax, name in zip(axes, names, strict=False):
        shown = [snapshots[name][step][:num] for step in rows[name]] + [real[:num]]
        images = as_shown(np.concatenate(shown), real, kind)
        picture = mosaic(images, len(shown), num)
        if picture.ndim == 2:
            ax.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        else:
            ax.imshow(np.clip((picture + 1) / 2, 0, 1), interpolation="nearest")
        ax.set_title(name, color=colour(name, methods), fontweight="bold")
        down, across = picture.shape[0] / len(shown), picture.shape[1] / num
        labels = [f"step {step}" for step in rows[name]] + ["real"]
        ax.set_yticks([(row + 0.5) * down for row in range(len(shown))], labels, fontsize=8)
        ax.tick_params(length=0, labelleft=True, labelbottom=bool(classes))
        ax.set_xticks([(k + 0.5) * across for k in range(num)] if classes else [])
        if classes:
            ax.set_xticklabels([name[:6] for name in classes[:num]], fontsize=8)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure


def _some_steps(snapshots: Mapping[int, np.ndarray]) -> list[int]:
    """Up to six steps: the first and the last, and between them each about twice the one before."""
    steps = sorted(snapshots)
    if len(steps) <= _NUM_ROWS:
        return steps
    wanted = np.geomspace(1, len(steps) - 1, _NUM_ROWS - 1).round().astype(int)
    return [steps[index] for index in np.unique([0, *wanted])]
