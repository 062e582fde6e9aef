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
from gft_jax.evaluation.judge import Comparison, Judge, RealSet
from gft_jax.evaluation.rollouts import Rollout
from gft_jax.metrics import Kernel

_DISTANCES = (
    Comparison(("w2",), metrics.w2, "data", "lower"),
    Comparison(("energy_distance",), metrics.energy_distance, "data", "lower"),
)
_OF_FEATURES = (
    Comparison(("frechet_distance",), metrics.frechet_distance, "feature^2", "lower"),
    Comparison(("kernel_distance",), metrics.kernel_distance, "", "lower"),
)


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
    comparisons = [*_DISTANCES, Comparison(("sliced_w2",), sliced, "data", "lower")]
    kernel = _kernel(subject.real.reference, "held-out samples: no squared MMD", notes)
    if kernel is not None:
        mmd = partial(metrics.squared_mmd, kernel=kernel)
        comparisons.append(Comparison(("squared_mmd",), mmd, "", "lower"))
    if classifier is not None:
        accuracy = partial(metrics.classifier_accuracy, key_folds, classifier=classifier)
        comparisons.append(Comparison(("classifier_accuracy",), accuracy, "", "as real"))
    table = subject.compare(judge, "quality", comparisons, subject.real)
    if subject.has_features:
        table += subject.compare_features(judge, "quality", _OF_FEATURES)
    if training is not None:
        near = [_renamed(row, "to_training_data", "as real") for row in _DISTANCES]
        table += subject.compare(judge, "quality", near, RealSet(training, subject.real.pool))
    return table


def efficiency(judge: Judge, subject: Subject, x0: np.ndarray, one_step: np.ndarray) -> list[Measure]:
    """Geometry of the paths, and what is left of the quality in one step."""
    student, base = subject.student, subject.base
    excess = partial(metrics.normalised_path_energy, w2=metrics.w2(x0, subject.real.reference))
    one_step_w2 = Comparison(("one_step_w2",), metrics.w2, "data", "lower")
    of_rows, num = partial(judge.of_rows, "efficiency"), student.num_evaluations
    return [
        of_rows("path_length", student.path_length, base.path_length, num, "data"),
        of_rows("straightness", student.straightness, base.straightness, num, "data^2"),
        of_rows("normalised_path_energy", student.kinetic_energy, None, num, "", excess),
        *judge.compare("efficiency", [one_step_w2], one_step, None, subject.real, 1),
    ]


def diversity(judge: Judge, subject: Subject, notes: list[str]) -> list[Measure]:
    """How varied the samples are, beside as many real ones."""
    spread = Comparison(
        ("mean_pairwise_distance",), _of_first(metrics.mean_pairwise_distance), "data", "as real"
    )
    comparisons = [Comparison(metrics.Prdc._fields, metrics.prdc, "", "as real")]
    kernel = _kernel(subject.real_features.reference, "held-out samples: no Vendi score", notes)
    if kernel is not None:
        score = _of_first(partial(metrics.vendi_score, kernel=kernel))
        comparisons.insert(0, Comparison(("vendi_score",), score, "", "as real"))
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
