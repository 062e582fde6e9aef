"""Table and words of the runs from the first step on."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.couplings.table import Column, between, interval

COLUMNS = (
    Column("w2", "W2, 100 Euler steps", 2),
    Column("one_step_w2", "W2, one step", 2),
    Column("normalised_path_energy", "normalised path energy", 2),
    Column("path_length", "path length", 2),
)
REFERENCE: dict[str, dict[str, tuple[float, float]]] = {
    "independent": {
        "w2": (0.58, 0.60),
        "one_step_w2": (2.23, 2.24),
        "normalised_path_energy": (1.21, 1.42),
    },
    "exact": {"w2": (0.30, 0.38), "one_step_w2": (0.45, 0.50), "normalised_path_energy": (0.03, 0.06)},
}
"""Lowest and highest of two seeds of another run of this setting, to compare with."""

Numbers = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Numbers by coupling, seed and name."""


def agreement(values: Sequence[float], reference: tuple[float, float]) -> str:
    """Whether a range of reference values touches the interval of the mean, or else the values themselves."""
    mean = interval(values)
    low, high = reference
    if mean is not None and low <= mean[1] and mean[0] <= high:
        return "touches the interval of the mean"
    if low <= max(values) and min(values) <= high:
        return "outside the interval of the mean, within the range of the seeds"
    return "**outside the range of the seeds**"


def table(numbers: Numbers) -> str:
    """Mean, interval, and range over the seeds of each coupling, with the reference."""
    lines = [
        "| coupling | number | mean | 95 % interval of the mean | range | seeds | reference | the reference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for coupling, by_seed in numbers.items():
        for column in COLUMNS:
            values = [found[column.name] for found in by_seed.values()]
            reference = REFERENCE.get(coupling, {}).get(column.name)
            cells = (
                coupling,
                column.title,
                f"{np.mean(values):.{column.digits}f}",
                between(interval(values), column.digits),
                between((min(values), max(values)), column.digits),
                str(len(values)),
                between(reference, column.digits),
                "" if reference is None else agreement(values, reference),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(numbers: Numbers, command: str, num_steps: int, figure: str) -> str:
    """The page in Markdown.

    Args:
        numbers: of the runs that there are.
        command: that makes them.
        num_steps: training steps of a run.
        figure: name of the figure's file.
    """
    floors = [found["floor"] for by_seed in numbers.values() for found in by_seed.values()]
    return f"""# Couplings: eight gaussians to two moons

    {command}

Flow matching from the first step on, without a base, on the two laws of torchcfm's tutorials
(`experiments/data/eight_to_moons.py`): multilayer perceptron of three hidden layers of 64 SELU, AdamW with rate 1e-3
and weight decay 0.01, batches of 256, {num_steps} steps, raw parameters. Each seed has its own start, batches and 1000
test points. W2 is exact, in the unit of the data; two sets of 1000 real points are {np.mean(floors):.2f} apart. The
normalised path energy is `|E int |v|^2 dt - W2^2| / W2^2`, W2 between source and data.

{table(numbers)}
The reference has two seeds. *Interval*: Student's, over the seeds, as if their numbers were normal.

![Sampling paths under each coupling]({figure})

Paths of the first seed by 100 Euler steps, from the source (white dots) to samples (coloured dots), over real points in
grey.
"""
