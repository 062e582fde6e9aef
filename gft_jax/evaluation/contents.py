"""What a report card holds."""

from typing import NamedTuple

import numpy as np

from gft_jax.evaluation.nfe import NfeCurve


class Measure(NamedTuple):
    """One number of a report card."""

    group: str
    """What it tells about: quality, efficiency, diversity or retention."""
    name: str
    """Name of the metric, as in `gft_jax.metrics` where it is from there."""
    value: float
    """Of the fine-tuned drift."""
    low: float | None
    """Lower end of the confidence interval, see `gft_jax.metrics.confidence_interval`. None where there is none: for
    the Sinkhorn divergence, which is too slow for it; where halves of the samples have too few rows to cover by (below
    12; 25 for precision, recall, density and coverage; 100 for the Vendi score); and where all halves have one
    value."""
    high: float | None
    """Upper end; None where low is."""
    base: float | None
    """The same of the base's samples or paths, from the same noise; None where it would mean nothing."""
    floor: float | None
    """Mean of the metric with real samples in place of generated ones, at the same numbers; None where it has none."""
    num_evaluations: int
    """Evaluations of the drift (NFE) that one sample or path has cost; with steps that adapt to each chunk, the
    most."""
    unit: str
    """That of the data, ``data``, or its square, ``data^2``; ``feature^2`` likewise; ``nats``; empty without unit."""
    better: str
    """``lower``, or ``as real``: as the floor; empty where neither direction is better."""


def in_steps(num_steps: int | None) -> str:
    """How a solver stepped, in words that follow its name."""
    return "with steps that adapt" if num_steps is None else f"in {num_steps} steps"


class CardArrays(NamedTuple):
    """What the figures of a card are drawn from, on the host. Row i of both models starts at the same noise."""

    samples: np.ndarray
    """Of the fine-tuned drift ``[num, *event]``."""
    base_samples: np.ndarray
    """Of the base."""
    real: np.ndarray
    """The held-out samples that they were compared with."""
    times: np.ndarray
    """Flow times of the paths ``[num_times]``."""
    trajectory: np.ndarray
    """Paths of the fine-tuned drift ``[num_times, num, *event]``."""
    base_trajectory: np.ndarray
    """Paths of the base."""
    velocity_variance: np.ndarray
    """`gft_jax.metrics.velocity_variance` between them ``[num_times - 1]``."""
    base_velocity_variance: np.ndarray
    """The same of the base."""
    compared_times: np.ndarray
    """Flow times at which the two drifts were compared, on paths of the base."""
    velocity_distance: np.ndarray
    """Root mean squared distance of the two velocities at each of them."""


class ReportCard(NamedTuple):
    """Quality, efficiency, diversity and retention of a fine-tuned flow."""

    measures: tuple[Measure, ...]
    """The table, in this order of groups."""
    nfe_curve: NfeCurve
    """Quality against evaluations."""
    notes: tuple[str, ...]
    """What could not be measured, and why; and whether there is an average velocity."""
    arrays: CardArrays
    """What figures are drawn from."""
    num_samples: int
    """Samples in each set."""
    solver: str
    """Solver of the samples and paths."""
    num_steps: int | None
    """Its equal steps; None where they adapt."""
    level: float
    """Probability with which an interval covers."""
    num_halves: int
    """Halves of the samples behind each interval."""
    num_floors: int
    """Pairs of real sets behind each floor."""

    def measure(self, name: str) -> Measure:
        """The measure of a name.

        Raises:
            ValueError: if the card has none; says which it has.
        """
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise ValueError(
            f"the card has no measure {name!r}, but {', '.join(measure.name for measure in self.measures)}"
        )
