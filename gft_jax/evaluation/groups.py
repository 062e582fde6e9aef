"""The four groups of a report card, each from samples and paths that are there already."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from gft_jax import metrics
from gft_jax.evaluation.contents import Measure
from gft_jax.evaluation.judge import NON_NEGATIVE, Comparison, Judge, RealSet
from gft_jax.evaluation.rollouts import Rollout
from gft_jax.metrics import Kernel

_DISTANCES = (
    Comparison(("w2",), metrics.w2, "data", "lower", NON_NEGATIVE),
    Comparison(("energy_distance",), metrics.energy_distance, "data", "lower"),
)
_FRECHET = Comparison(("frechet_distance",), metrics.frechet_distance, "feature^2", "lower", NON_NEGATIVE)
_KERNEL = Comparison(("kernel_distance",), metrics.kernel_distance, "", "lower")
_NEIGHBOURS = 5
_PRDC = Comparison(
    metrics.Prdc._fields,
    partial(metrics.prdc, num_neighbours=_NEIGHBOURS),
    "",
    "as real",
    bounds=(0, (1, 1, math.inf, 1)),
    least_half=5 * _NEIGHBOURS,  # in smaller halves the intervals are too narrow
)
_LEAST_HALF_FOR_VENDI = 100  # likewise: the score still grows with the number of samples
_SINKHORN_EPSILON = 0.05  # in units of the mean squared distance of two held-out samples


class Subject(NamedTuple):
    """What is judged: samples and paths of drift and base from the same noise, and real samples."""

    student: Rollout
    base: Rollout
    real: RealSet
    student_features: np.ndarray
    """Features ``[num, width]``; without an extractor the samples themselves, as in the next two."""
    base_features: np.ndarray
    real_features: RealSet
    has_features: bool

    def compare(
        self, judge: Judge, group: str, comparisons: Sequence[Comparison], real: RealSet
    ) -> list[Measure]:
        """Measures of the samples."""
        return judge.compare(
            group, comparisons, self.student.x, self.base.x, real, self.student.num_evaluations
        )

    def compare_features(self, judge: Judge, group: str, comparisons: Sequence[Comparison]) -> list[Measure]:
        """Measures of the features."""
        return judge.compare(
            group,
            comparisons,
            self.student_features,
            self.base_features,
            self.real_features,
            self.student.num_evaluations,
        )


def quality(
    judge: Judge,
    subject: Subject,
    key: Key[Array, ""],
    classifier: Any,
    training: np.ndarray | None,
    notes: list[str],
) -> list[Measure]:
    """Distances to held-out data, and to the rows of the training data."""
    key_directions, key_folds = jax.random.split(key)
    sliced = partial(metrics.sliced_w2, key_directions)
    comparisons = [*_DISTANCES, Comparison(("sliced_w2",), sliced, "data", "lower", NON_NEGATIVE)]
    kernel = _kernel(
        subject.real.reference, "held-out samples: no squared MMD, no Sinkhorn divergence", notes
    )
    if kernel is not None:
        mmd = partial(metrics.squared_mmd, kernel=kernel)
        comparisons.append(Comparison(("squared_mmd",), mmd, "", "lower", (-2.0, 2.0)))
    if classifier is not None:
        accuracy = partial(metrics.classifier_accuracy, key_folds, classifier=classifier)
        comparisons.append(Comparison(("classifier_accuracy",), accuracy, "", "as real", (0.0, 1.0)))
    table = subject.compare(judge, "quality", comparisons, subject.real)
    if kernel is not None:
        table += _sinkhorn(judge, subject, notes)
    if subject.has_features:
        table += subject.compare_features(judge, "quality", (_FRECHET, _KERNEL))
    else:
        table += subject.compare(judge, "quality", _of_samples(subject.real.reference, notes), subject.real)
    if training is not None:
        near = [_renamed(row, "to_training_data", "as real") for row in _DISTANCES]
        table += subject.compare(judge, "quality", near, RealSet(training, subject.real.pool))
    return table


def efficiency(
    judge: Judge, subject: Subject, x0: np.ndarray, one_step: np.ndarray, notes: list[str]
) -> list[Measure]:
    """Geometry of the paths, and what is left of the quality in one step."""
    student, base = subject.student, subject.base
    excess = partial(metrics.normalised_path_energy, w2=metrics.w2(x0, subject.real.reference))
    one_step_w2 = Comparison(("one_step_w2",), metrics.w2, "data", "lower", NON_NEGATIVE)
    of_rows, num = partial(judge.of_rows, "efficiency"), student.num_evaluations
    return [
        of_rows("path_length", student.path_length, base.path_length, num, "data"),
        of_rows("kinetic_energy", student.kinetic_energy, base.kinetic_energy, num, "data^2"),
        of_rows("straightness", student.straightness, base.straightness, num, "data^2"),
        of_rows("normalised_path_energy", student.kinetic_energy, None, num, "", excess),
        *_bending(judge, student, base, notes),
        *judge.compare("efficiency", [one_step_w2], one_step, None, subject.real, 1),
    ]


def diversity(judge: Judge, subject: Subject, notes: list[str]) -> list[Measure]:
    """How varied the samples are, beside as many real ones."""
    distance = _of_first(metrics.mean_pairwise_distance)
    spread = Comparison(("mean_pairwise_distance",), distance, "data", "as real", NON_NEGATIVE)
    comparisons, num = [_PRDC], len(subject.real.reference)
    kernel = _kernel(subject.real_features.reference, "held-out samples: no Vendi score", notes)
    if kernel is not None:
        score = _of_first(partial(metrics.vendi_score, kernel=kernel))
        vendi = Comparison(("vendi_score",), score, "", "as real", (1, num), _LEAST_HALF_FOR_VENDI)
        comparisons.insert(0, vendi)
    table = subject.compare(judge, "diversity", [spread], subject.real)
    return table + subject.compare_features(judge, "diversity", comparisons)


def retention(
    judge: Judge, subject: Subject, squared_velocity_distances: np.ndarray, old: RealSet | None
) -> list[Measure]:
    """Distance of the drift from the base's ``[num_times, num]``, and of its samples from old data."""
    table = [
        judge.of_rows(
            "retention",
            "velocity_distance",
            squared_velocity_distances.mean(axis=0),
            None,
            subject.base.num_evaluations,
            "data",
            lambda rows: math.sqrt(np.mean(rows)),
        )
    ]
    if old is not None:
        far = [_renamed(row, "to_old_data", "lower") for row in _DISTANCES]
        table += subject.compare(judge, "retention", far, old)
    return table


class _NotConverged(ValueError):
    pass


def _sinkhorn(judge: Judge, subject: Subject, notes: list[str]) -> list[Measure]:
    """The Sinkhorn divergence at one epsilon for all; without interval, since a hundred halves would take seconds."""
    reference = subject.real.reference.reshape(len(subject.real.reference), -1)
    epsilon = _SINKHORN_EPSILON * 2 * float(np.sum(np.var(reference, axis=0, ddof=1, dtype=np.float64)))

    def divergence(x: np.ndarray, y: np.ndarray) -> float:
        found = metrics.sinkhorn_divergence(x, y, absolute_epsilon=epsilon)
        if not found.converged:
            raise _NotConverged(f"its iteration left an error of {found.marginal_error:.2g} in the marginals")
        return found.value

    comparison = Comparison(("sinkhorn_divergence",), divergence, "data^2", "lower", least_half=None)
    try:
        return subject.compare(judge, "quality", [comparison], subject.real)
    except _NotConverged as error:
        notes.append(f"no Sinkhorn divergence: {error}")
        return []


def _of_samples(reference: np.ndarray, notes: list[str]) -> list[Comparison]:
    """What is otherwise of features, of the samples: named so that nobody takes it for FID and KID."""
    width = math.prod(reference.shape[1:])
    comparisons = [_KERNEL._replace(names=("kernel_distance_of_samples",))]
    if len(reference) <= width:
        notes.append(
            f"no Frechet distance of samples: {len(reference)} samples of width {width} have no regular covariance"
        )
        return comparisons
    frechet = _FRECHET._replace(names=("frechet_distance_of_samples",), unit="data^2")
    return [frechet, *comparisons]


def _bending(judge: Judge, student: Rollout, base: Rollout, notes: list[str]) -> list[Measure]:
    """Whether paths bend late (+1) or early (-1): a note where the rank correlation is not defined."""

    def trend(squared_deviations: np.ndarray) -> float:
        value = metrics.spearman(student.times[1:], squared_deviations.mean(axis=0))
        if math.isnan(value):
            raise ValueError("it is the same in all steps")
        return value

    def measure(base_rows: np.ndarray | None) -> Measure:
        return judge.of_rows(
            "efficiency",
            "velocity_variance_spearman",
            student.squared_deviation,
            base_rows,
            student.num_evaluations,
            "",
            trend,
            bounds=(-1.0, 1.0),
            better="",
        )

    try:
        return [measure(base.squared_deviation if np.ptp(base.velocity_variance) > 0 else None)]
    except ValueError as error:
        notes.append(f"no Spearman correlation of velocity variance and time: {error}")
        return []


def _of_first(metric: Callable[[Any], float]) -> Callable[[Any, Any], float]:
    """A metric of one set as one of two, of which the second is left alone."""
    return lambda x, y: metric(x)


def _renamed(comparison: Comparison, suffix: str, better: str) -> Comparison:
    names = tuple(f"{name}_{suffix}" for name in comparison.names)
    return comparison._replace(names=names, better=better)


def _kernel(rows: np.ndarray, what: str, notes: list[str]) -> Kernel | None:
    """Gaussian kernel at the median distance of real samples; None, and a note, where that is zero."""
    bandwidth = metrics.median_distance(rows)
    if bandwidth == 0:
        notes.append(f"at least half of the pairs coincide among the {what}")
        return None
    return metrics.gaussian_kernel(bandwidth)
