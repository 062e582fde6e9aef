"""The figure of the comparison of couplings in fine-tuning: a row for each domain."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.configs.domains import Domain
from experiments.couplings.finetuned_flow import EULER_STEPS, FEW_STEPS
from experiments.couplings.finetuned_page import Numbers, Runs, is_deficit, values_of
from experiments.plots import REFERENCE, STYLE, colour, look

_NAMES: dict[Domain, str] = {"toy2d": "plane", "digits": "digits"}
_BARS = (("path_length", "path length"), ("normalised_path_energy", "normalised path energy"))
_SPREAD = 0.7
"""Width over which the markers of one number of steps are laid out, of a distance of 1 between two."""


def figure(numbers: Numbers, bases: Mapping[Domain, Mapping[str, float]]) -> Figure:
    """Path length and normalised path energy of each coupling, and W2 against the number of Euler steps."""
    couplings = list(next(iter(numbers.values())))
    with rc_context({**STYLE, "axes.titlepad": 8}):
        drawn = Figure(figsize=(12, 0.6 + 4.1 * len(numbers)))
        axes = drawn.subplots(len(numbers), 3, squeeze=False, width_ratios=(1, 1, 1.7))
        for row, (domain, runs) in zip(axes, numbers.items(), strict=True):
            for ax, (column, title) in zip(row, _BARS, strict=False):
                _dots(ax, runs, column, bases[domain][column])
                ax.set_title(f"{_NAMES[domain]}: {title}")
            row[1].tick_params(labelleft=False)
            if is_deficit(runs):
                row[1].set_xlabel("energies below W₂²: lower is more energy")
            _w2(row[2], runs, bases[domain])
            row[2].set_title(f"{_NAMES[domain]}: W₂ by number of Euler steps")
        handles = [Line2D([], [], label=name, **look(name, couplings)) for name in couplings]
        handles.append(Line2D([], [], color=REFERENCE, linestyle=":", label="base, before fine-tuning"))
        handles.append(Line2D([], [], color=REFERENCE, linestyle="--", label="floor: real against real"))
        several = len(next(iter(next(iter(numbers.values())).values()))) > 1
        drawn.legend(
            handles=handles,
            loc="outside lower center",
            ncols=5,
            title="markers: mean of the seeds; bars: smallest to largest" if several else "one seed",
            title_fontsize=10,
        )
    return drawn


def _range(values: Sequence[float]) -> tuple[float, np.ndarray]:
    """Mean, and how far smallest and largest are from it ``[2, 1]``."""
    mean = float(np.mean(values))
    return mean, np.array([[mean - min(values)], [max(values) - mean]])


def _dots(ax: Axes, runs: Mapping[str, Runs], column: str, base: float) -> None:
    """A line for each coupling, from above, with the base as a vertical line."""
    couplings = list(runs)
    for height, name in enumerate(couplings):
        mean, span = _range(values_of(runs[name], column))
        ax.errorbar(
            mean, height, xerr=span, linestyle="none", markersize=7, capsize=3, **look(name, couplings)
        )
    ax.axvline(base, color=REFERENCE, linestyle=":", linewidth=1.5)
    ax.set_yticks(range(len(couplings)), couplings)
    for label, name in zip(ax.get_yticklabels(), couplings, strict=True):
        label.set_color(colour(name, couplings))
    ax.set_ylim(len(couplings) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _w2(ax: Axes, runs: Mapping[str, Runs], base: Mapping[str, float]) -> None:
    """Each number of steps is a place of its own, where the couplings stand side by side."""
    couplings, steps = list(runs), (*FEW_STEPS, EULER_STEPS)
    places = np.arange(len(steps))
    for number, name in enumerate(couplings):
        ranges = [_range(values_of(runs[name], f"w2_{num}")) for num in steps]
        means, spans = [mean for mean, _ in ranges], np.concatenate([span for _, span in ranges], axis=1)
        offset = _SPREAD * ((number + 0.5) / len(couplings) - 0.5)
        ax.errorbar(places + offset, means, yerr=spans, linestyle="none", capsize=2, **look(name, couplings))
    ends = places - _SPREAD / 2, places + _SPREAD / 2
    ax.hlines([base[f"w2_{num}"] for num in steps], *ends, color=REFERENCE, linestyles=":", linewidth=1.5)
    ax.axhline(base["floor_w2"], color=REFERENCE, linestyle="--", linewidth=1.5)
    ax.set_xticks(places, [str(num) for num in steps])
    ax.grid(visible=False, axis="x")
    ax.set(xlabel="Euler steps", ylabel="W₂ to held-out data")
