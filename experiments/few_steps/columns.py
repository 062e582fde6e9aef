"""Columns that the table of a few_steps run has beyond those of any adaptation."""

from experiments.few_steps.scores import EVALUATIONS, energy_at, w2_at
from experiments.summary import Column

_GROUP = "Few evaluations"

FEW_STEP_COLUMNS = (
    *(
        Column(
            w2_at(count),
            f"{count}-step W2",
            f"W₂, {count} steps",
            _GROUP,
            "lower",
            3,
            1,
            f"W₂ at the last evaluation of samples in {count} steps, each of which evaluates the network once.",
        )
        for count in EVALUATIONS[1:-1]
    ),
    Column(
        energy_at(1),
        "1-step energy",
        "energy distance, one step",
        _GROUP,
        "lower",
        4,
        1,
        "Energy distance at the last evaluation of samples in one step.",
    ),
    Column(
        "forward_evaluations",
        "cost /1e6",
        "training cost · 10⁻⁶",
        "Cost",
        "lower",
        2,
        1e-6,
        "Forward evaluations of the network for one row that training has cost, in millions: three for a row that is "
        "trained on, one more while the base is asked, two more for a forward-mode derivative, and those of the pairs.",
    ),
)
