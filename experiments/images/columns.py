"""What the table of a run on images has beyond that of any adaptation."""

from experiments.summary import Column

IMAGE_COLUMNS = (
    Column(
        "num_evaluations",
        "NFE",
        "NFE",
        "Cost",
        "lower",
        0,
        1,
        "Number of function evaluations: calls of the network for one sample at the last evaluation, as they were "
        "counted. A guided step takes two; where steps adapt to the rows drawn at once, it is a mean over the samples.",
    ),
)
