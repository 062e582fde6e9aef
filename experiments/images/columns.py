"""What the table of a run on images has beyond that of any adaptation."""

from experiments.summary import Column

IMAGE_COLUMNS = (
    Column(
        "label_accuracy",
        "of class /%",
        "of the class told, %",
        "Sample quality",
        "higher",
        1,
        100,
        "Share of samples at the last evaluation that their five nearest neighbours among the data of fine-tuning take "
        "for the class that the samples were told; of real data, that of held-out ones.",
    ),
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
