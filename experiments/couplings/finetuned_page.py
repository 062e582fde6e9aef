"""Tables and words of the comparison of couplings in fine-tuning."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.configs.domains import Domain
from experiments.couplings.finetuned_flow import CONFIGS, EULER_STEPS, FEW_STEPS, NUM_PAIRINGS
from experiments.couplings.table import Column, between

QUALITY = (
    *(Column(f"w2_{num}", f"W2, {num} step{'s' if num > 1 else ''}", 2) for num in FEW_STEPS),
    Column(f"w2_{EULER_STEPS}", f"W2, {EULER_STEPS} steps", 2),
    Column("energy_distance", "energy distance", 3),
)
NPE = Column("normalised_path_energy", "NPE", 2)
WAY = (
    Column("path_length", "path length", 2),
    NPE,
    Column("energy_over_squared_w2", "path energy / W2²", 2),
    Column("to_base_samples", "to the base's samples", 2),
    Column("to_base_drift", "to the base's drift", 2),
    Column("pair_cost", "cost of the pairs", 2),
)
TITLES: dict[Domain, str] = {
    "toy2d": "In the plane: 8 gaussians to moons",
    "digits": "Digits: 0-4 to 5-9, 64 pixels",
}

Runs = Sequence[Mapping[str, float]]
"""Numbers of the seeds of one coupling."""
Numbers = Mapping[Domain, Mapping[str, Runs]]
"""By domain and coupling."""


def values_of(runs: Runs, column: str) -> list[float]:
    """One number of all seeds."""
    return [run[column] for run in runs]


def table(runs: Mapping[str, Runs], base: Mapping[str, float], columns: Sequence[Column]) -> str:
    """Mean over the seeds, smallest and largest; first the base, and last the floor, where they have the number."""

    def row(name: str, cells: Sequence[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    def single(prefix: str) -> list[str]:
        return [
            f"{base[prefix + column.name]:.{column.digits}f}" if prefix + column.name in base else ""
            for column in columns
        ]

    def cell(values: Sequence[float], digits: int) -> str:
        mean = f"{np.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ({between((min(values), max(values)), digits)})"

    lines = [row("coupling", [column.title for column in columns]), "|---" * (len(columns) + 1) + "|"]
    lines.append(row("base, before fine-tuning", single("")))
    for name, of_seeds in runs.items():
        lines.append(row(name, [cell(values_of(of_seeds, column.name), column.digits) for column in columns]))
    if columns is QUALITY:
        floors = [f"{base['floor_w2']:.2f}"] * (len(columns) - 1) + [f"{base['floor_energy_distance']:.3f}"]
        lines.append(row("floor: real against real", floors))
    return "\n".join(lines) + "\n"


def is_deficit(runs: Mapping[str, Runs]) -> bool:
    """Whether all path energies are below the squared W2, so that less energy gives a larger NPE."""
    return max(run["energy_over_squared_w2"] for of_seeds in runs.values() for run in of_seeds) < 1


def has_deficit(runs: Mapping[str, Runs]) -> bool:
    """Whether some path energy is below the squared W2, so that NPEs cannot be ordered."""
    return min(run["energy_over_squared_w2"] for of_seeds in runs.values() for run in of_seeds) < 1


def lowest(runs: Mapping[str, Runs], columns: Sequence[Column]) -> str:
    """A table: which coupling has the lowest mean of each number, and whose ranges over the seeds reach its own."""
    lines = ["| number | lowest with | mean | ranges that reach it |", "|---|---|---|---|"]
    for column in columns:
        values = {name: values_of(of_seeds, column.name) for name, of_seeds in runs.items()}
        best = min(values, key=lambda name: np.mean(values[name]))
        near = [name for name, of in values.items() if name != best and min(of) <= max(values[best])]
        mean = f"{np.mean(values[best]):.{column.digits}f}"
        lines.append(f"| {column.title} | **{best}** | {mean} | {', '.join(near) or 'none'} |")
    return "\n".join(lines) + "\n"


def page(
    numbers: Numbers, bases: Mapping[Domain, Mapping[str, float]], command: str, num_steps: int, figure: str
) -> str:
    """The page in Markdown.

    Args:
        numbers: of all runs.
        bases: of each domain's base, with its floors.
        command: that makes them.
        num_steps: training steps of a run.
        figure: name of the figure's file.
    """
    seeds = len(next(iter(next(iter(numbers.values())).values())))
    sections = [
        f"""## {TITLES[domain]}

Batches of {CONFIGS[domain].batch_size} rows, {len(CONFIGS[domain].data().target)} rows of new data.

{table(runs, bases[domain], QUALITY)}
{table(runs, bases[domain], WAY)}
{lowest(runs, (*QUALITY, WAY[0]) if has_deficit(runs) else (*QUALITY, WAY[0], NPE))}"""
        for domain, runs in numbers.items()
    ]
    return f"""# Couplings in fine-tuning

    {command}

One base for each domain, pretrained with independent pairs, is fine-tuned by gradual fine-tuning (gradual-linear of
`python -m experiments.train`, its data, network and rates) for {num_steps} steps with each coupling. **independent**
pairs at random; **exact** the rows of a batch at the least squared distance; **exact-of-1024** those of several
batches, 1024 rows at once; **semi-discrete** chooses out of all the data for each row of noise; **sinkhorn** draws
partners from the entropic plan, and **one-to-one** does so without repetition; **unbalanced** gives far data less
weight; **base-exact** pairs the data with the base's own samples at the least squared distance, and takes the noise
that they come from.

![Path length, normalised path energy and W2 at few steps]({figure})

Mean over {seeds} seed{"s" if seeds > 1 else ""} of the fine-tuning, smallest and largest in brackets; base, held-out
data and test noise are the same for all, so that the ranges are of training alone. Samples are by Euler's method from
as many rows of noise as there are held-out data, {EULER_STEPS} steps where none are named. W2 is exact, in the unit of
the data, and so is its floor, W2 of as many other real samples, which chance may bring above that of a good model.
*NPE*, the normalised path energy, is `|E int |v|^2 dt - W2^2| / W2^2`, W2 between that noise and the held-out data. Of
so few points this W2 is too large, most of all in many dimensions: where a *path energy / W2²* is below 1, the NPE
measures a deficit, less energy gives more of it, and with any such one in a table no lowest NPE is named. With
*unbalanced* a flow aims at another law than that of the data, one nearer to the noise. *To the base's samples*: root
mean square distance of samples from those of the base for the same noise; *to the base's drift*: of the drifts, on the
base's paths. *Cost of the pairs*: mean `|x0 - x1|^2` of the first {NUM_PAIRINGS} batches, by the row weights, and for
*exact-of-1024* of the first 1024 rows.

{"".join(section + chr(10) for section in sections).rstrip()}
"""
