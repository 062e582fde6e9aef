"""Tables and words of the conditional runs of a folder; what is said follows from the numbers."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.couplings.conditional_flow import BATCH_SIZE, CONSTANT_RATE, NUM_STEPS, Rate
from experiments.couplings.conditional_tasks import NUM_DRAWS, NUM_HELD_OUT, NUM_POINTS
from experiments.couplings.table import Column, between, interval


def _steps(num: int) -> str:
    return f"{num} Euler step{'s' if num > 1 else ''}"


COLUMNS = (
    *(Column(f"w2_{num}", f"W2, {_steps(num)}", 3) for num in reversed(NUM_STEPS)),
    Column("path_length", "path length", 2),
)
SKEW = Column("skew", "skew", 1)
"""Without an interval: its values stop at zero."""
ENERGY = Column("energy_distance", "energy distance", 3)
"""For images alone: points that are spread evenly in the plane bias it."""
CLAIMS = (("exact", "independent"), ("independent", "respecting"), ("exact", "respecting"))
"""Pairs of couplings, of which the first is expected to have the larger conditional W2."""
DESCRIPTIONS: Mapping[str, tuple[str, str]] = {
    "moon": (
        "Moons by moon",
        "Eight gaussians to two moons (`experiments/data/eight_to_moons.py`); the drift is told which of the two moons "
        f"the data row is of (`cond`). Samples of a moon start anywhere in the source. {NUM_POINTS} points a moon.",
    ),
    "mode": (
        "Moons by mode of the start",
        "The same laws; the drift is told which of the eight gaussians the start is of (`source_cond`, which follows "
        f"x0 through the coupling). From each of them the samples shall be both moons. {NUM_POINTS} points a mode.",
    ),
    "digit": (
        "Digits by class",
        "Normal noise to scikit-learn's 8 x 8 digits; the drift is told the class (`cond`), of which there are ten: "
        f"about {BATCH_SIZE // 10} rows of each in a batch. {NUM_HELD_OUT} held-out images a class, others for each "
        f"seed; {NUM_DRAWS} sets of noise. So few points in 64 dimensions are far apart even where laws agree, and W2 "
        "falls below its floor where samples are nearer to the mean than images are. The energy distance, a mean over "
        "the classes of that of the samples by the most steps, has no such bias.",
    ),
}

RATES: Mapping[Rate, str] = {
    "constant": f"stays at {CONSTANT_RATE:g}, so that the flow keeps noise of its last batches",
    "cosine": "falls to zero as a cosine, which averages the noise of the batches away",
}

ByCoupling = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Numbers by coupling, seed and name."""
Numbers = Mapping[str, ByCoupling]
"""The same by task."""


def page(numbers: Numbers, command: str, num_steps: Mapping[str, int], rate: Rate, figure: str) -> str:
    """The page in Markdown.

    Args:
        numbers: of the runs that there are.
        command: that makes them.
        num_steps: training steps of the runs of each task.
        rate: how their learning rate went.
        figure: name of the figure's file.
    """
    most = max(NUM_STEPS)
    sections = "\n".join(
        _section(task, by_coupling, num_steps[task]) for task, by_coupling in numbers.items()
    )
    return f"""# Couplings and conditional generation

    {command}

Flow matching from the first step on, with a drift that is told a condition: residual multilayer perceptron, AdamW,
batches of {BATCH_SIZE}. The learning rate {RATES[rate]}.

Each seed has a start, batches and test points of its own, which are the same for every coupling. *respecting* is
`respecting_labels(exact())`: pairs within each label, where the rows of the end that has no labels inherit those of
random partners.

*W2* is conditional: the root of the mean, over conditions of equal weight, of the squared exact W2 between samples with
this condition and as many real points of it, in the unit of the data; the *floor* is that of other real points. In the
plane samples start at points that are spread as evenly as the real ones are (a Kronecker sequence). The *path length*
is that of {most} steps. *Skew* is how far a condition moves the mean of the other end in the batches of training (root
mean square over conditions): of x0 where the condition is the data's, of x1 where it is the source's. Samples of a
condition start anywhere in the source, and from every mode of the source they shall reach all of the data: where the
skew is not zero, the flow was trained for something else.

{summary(numbers)}{sections}
![Samples by condition under each coupling]({figure})

Samples of the last seed by {most} Euler steps, not selected: in the plane a colour for each condition, over real
points in grey, and the modes of the source as squares; of digits a row for each class.
"""


def _section(task: str, by_coupling: ByCoupling, num_steps: int) -> str:
    title, text = DESCRIPTIONS[task]
    floors = [numbers["floor"] for by_seed in by_coupling.values() for numbers in by_seed.values()]
    text += f" {num_steps} training steps. Floor of W2: {np.mean(floors):.3f}."
    return f"""## {title}

{textwrap.fill(text, 120)}

{table(by_coupling, (*COLUMNS, ENERGY) if task == "digit" else COLUMNS)}
{claims_table(by_coupling)}"""


def table(by_coupling: ByCoupling, columns: Sequence[Column]) -> str:
    """Mean over the seeds of each number of each coupling, with the interval of the mean, and of the skew."""
    titles = [column.title for column in (*columns, SKEW)]
    lines = [f"| coupling | {' | '.join(titles)} | seeds |", f"|{'---|' * (len(titles) + 2)}"]
    for coupling, by_seed in by_coupling.items():
        cells = [coupling]
        for column in columns:
            values = [numbers[column.name] for numbers in by_seed.values()]
            ends = between(interval(values), column.digits)
            cells.append(f"{np.mean(values):.{column.digits}f}" + (f" ({ends})" if ends else ""))
        cells.append(f"{np.mean([numbers[SKEW.name] for numbers in by_seed.values()]):.{SKEW.digits}f}")
        lines.append(f"| {' | '.join([*cells, str(len(by_seed))])} |")
    return "\n".join(lines) + "\n\nMean and Student's 95 % interval of it over the seeds.\n"


def claims_table(by_coupling: ByCoupling) -> str:
    """Differences in conditional W2 that are expected to be positive, seed by seed; nothing for couplings not run."""
    lines = []
    for num in reversed(NUM_STEPS):
        for worse, better in CLAIMS:
            if worse in by_coupling and better in by_coupling:
                differences = differences_of(by_coupling, worse, better, num)
                cells = (
                    f"{worse} - {better}",
                    _steps(num),
                    ", ".join(f"{value:.3f}" for value in differences),
                    f"{np.mean(differences):.3f}",
                    between(interval(differences), 3),
                    verdict(differences),
                )
                lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    head = "| difference in W2 | samples | by seed | mean | 95 % interval | larger than zero |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines]) + "\n"


def summary(numbers: Numbers) -> str:
    """Whether the expected order holds, a row for each task and number of steps; nothing for couplings not run."""
    run = set.intersection(*(set(by_coupling) for by_coupling in numbers.values()))
    claims = [pair for pair in CLAIMS if set(pair) <= run]
    if not claims:
        return ""
    lines = [
        f"| conditional W2 | {' | '.join(f'{worse} > {better}' for worse, better in claims)} |",
        f"|{'---|' * (len(claims) + 1)}",
    ]
    for task, by_coupling in numbers.items():
        for num in reversed(NUM_STEPS):
            verdicts = [verdict(differences_of(by_coupling, *pair, num)) for pair in claims]
            lines.append(f"| {DESCRIPTIONS[task][0]}, {_steps(num)} | {' | '.join(verdicts)} |")
    text = (
        "Expected, by many steps, is that *exact* is worst and *respecting* best. Seen, by the 95 % interval of the "
        "mean\ndifference over the seeds, and in how many of them:"
    )
    return "\n".join([text, "", *lines, "", ""])


def differences_of(by_coupling: ByCoupling, worse: str, better: str, num: int) -> list[float]:
    """Conditional W2 by so many steps under the one coupling minus that under the other, seed by seed."""
    ours, theirs = by_coupling[worse], by_coupling[better]
    return [ours[seed][f"w2_{num}"] - theirs[seed][f"w2_{num}"] for seed in ours]


def verdict(differences: Sequence[float]) -> str:
    """Whether differences that are expected to be positive are: by the interval of their mean, and seed by seed."""
    ends = interval(differences)
    seeds = f"{sum(value > 0 for value in differences)} of {len(differences)} seeds"
    if ends is None or ends[0] <= 0 <= ends[1]:
        return f"undecided ({seeds})"
    return f"yes ({seeds})" if ends[0] > 0 else f"**no** ({seeds})"
