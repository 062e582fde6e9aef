"""What the page of a report says of each figure."""

from typing import NamedTuple


class Caption(NamedTuple):
    """Words for a figure."""

    title: str
    text: str
    """``{parameters}`` stands for whose parameters are scored, ``{scale}`` for how samples are shown."""
    alt: str = ""
    """What is to be seen, for a reader who does not see it; empty where the title says enough."""


CAPTIONS = {
    "pareto.png": Caption(
        "What reward costs",
        "Last evaluations of every run: a line joins the strengths of one method. First: mean reward against two "
        "distances to the base, sample by sample and between the laws. Then diversity against reward, and the share of "
        "samples that are near data. Last, where there is a judge that no method was trained against, the reward that "
        "it does not see, and the distance to real samples of what was wanted; where laws are known, the distance to "
        "the tilted law of the data that has the same reward. Broad grey line: the tilted laws p exp(r / λ) "
        "themselves.",
        "Panels of lines, one for each method, that rise from the base as the strength grows.",
    ),
    "strengths.png": Caption(
        "Samples by strength",
        "First samples of each run from the same noise, not selected; of each method from its weakest strength to its "
        "strongest. Points lie over samples of the base in grey.",
        "Panels of samples of the base, of real data, and of each method at each strength.",
    ),
    "cooling.gif": Caption(
        "The cooling, animated",
        "The same noise at every step: each dot is one sample, and moves as the parameters do. Grey: real samples. "
        "Below: the target weight w = 1 / (1 + β) of the methods that cool. The others have w = 1 from the "
        "first step on.",
        "Animation: from step to step of the training the dots of each method move from the samples of the base "
        "onto the real ones, in step with the target weight where the method cools.",
    ),
    "scatter.png": Caption(
        "Samples",
        "First samples of each model, not selected, over real ones in grey. Last: the real ones alone.",
        "A panel of dots for the base, for each method and for real samples.",
    ),
    "moving_samples.png": Caption(
        "Moving samples",
        "Samples of the same noise at several steps of the training, a row for each method, over real ones in grey. A "
        "method that continues another starts with its samples. w is the target weight at this step, of a method that "
        "cools.",
        "A table of panels of dots: methods by row, training steps by column.",
    ),
    "trajectories.png": Caption(
        "Sampling paths",
        "Paths of the sampling ODE from the same noise (white dots) to samples (coloured dots), over real samples in "
        "grey.",
        "A panel of curves from noise to samples for the base and each method.",
    ),
    "images_by_step.png": Caption(
        "Samples by step",
        "Samples of the same noise at several steps of the training, not selected; at step 0 they are the base's. Last "
        "row: real, held-out images of the same classes, which are named below. {scale}",
        "Panels of images: a row for each training step, a column for each noise, real images in the last row.",
    ),
    "few_steps.png": Caption(
        "Few evaluations",
        "Left and middle: distance to held-out data of samples in few evaluations of the network, at the end of "
        "training; markers of one number of evaluations stand side by side. Samples are by Euler's method, or by steps "
        "of the average velocity where a method learns one. Right: the distance of one-step samples at every "
        "evaluation, against what training had cost by then, in forward evaluations for one row; reflow starts with "
        "the parameters whose samples it learns from, and when these are paid for.",
        "Three panels of lines, one for each method, that fall towards the floor.",
    ),
    "few_step_samples.png": Caption(
        "Samples in few evaluations",
        "First samples of the base and each method, not selected, of the same noise; in the plane over real ones in "
        "grey. Columns: evaluations of the network for a sample. {scale}",
        "A table of panels of samples: base and methods by row, evaluations by column.",
    ),
    "convergence.png": Caption(
        "Convergence",
        "Distance between generated and held-out samples at every evaluation of the {parameters} parameters. Dotted: "
        "the base before fine-tuning. Dashed: the floor, real data against real data.",
    ),
    "path_length.png": Caption(
        "Paths",
        "Left: mean length of the sampling trajectories. Right: W₂ of samples made in one step, of Euler's "
        "method or of an average velocity; straight paths lose little by one of Euler's. Lines and bands as above.",
    ),
    "path_kl.png": Caption(
        "Path KL to the base",
        "Relative entropy KL(P ‖ P_base) of the SDEs made of the drift and of the base's, at every evaluation; dotted: "
        "the base, at 0. Right: against the effective target weight ŵ that the network has reached, up to 1.1; the "
        "evaluations of a method that cools are joined. Dashed: the parabola in ŵ through the last of them. The curve "
        "would follow it if the drift moved on a straight line from the base's to the last one while the law of the "
        "sampling paths stayed as it is at the end; that law moves too, so it need not.",
    ),
    "cooling.png": Caption(
        "Cooling",
        "Left: temperature β of the methods that cool. Right: the target weight w = 1 / (1 + β) that is "
        "asked for (broad line), and the weight ŵ that the network has reached (thin line), estimated from the "
        "training batches as a ratio of moments. Both are means over the steps since the last evaluation. Below the "
        "broad line the network lags.",
    ),
    "end_law.png": Caption(
        "The terminal objective over the cooling",
        "Left, in the plane: energy distance of the samples of each evaluation to the law q^w p^(1 - w) of the target "
        "weight w at that step, at which the terminal objective aims, for the methods that cool by a schedule; the "
        "drift-space objective leads elsewhere on its way. Right: effective sample size of the weights by target "
        "weight, as a share of the rows; lines: of all target samples and of all samples of the base; dots: of "
        "training batches, which miss rare rows of large weight. Where it is a few rows' worth, the weighted mean "
        "rests on them.",
        "Lines of distance by training step, of a run in the plane; lines and dots of effective sample size by target "
        "weight.",
    ),
    "samples.png": Caption(
        "Samples",
        "First samples of each model, not selected, and real data. {scale}",
    ),
}
"""By file name, in the order of the page."""
