"""Fidelity, diversity and recognised classes by nearest neighbours."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Shaped
from scipy.spatial.distance import cdist

from gft_jax.metrics.rows import flat_pair

_BLOCK_ROWS = 1024  # rows of the distance matrix held at once


class Prdc(NamedTuple):
    """Fidelity (precision, density) and diversity (recall, coverage), without unit."""

    precision: float
    """Share of generated samples that lie in the ball of some real sample, in [0, 1]."""
    recall: float
    """Share of real samples that lie in the ball of some generated sample, in [0, 1]."""
    density: float
    """Mean number of balls of real samples that hold a generated sample, divided by num_neighbours: >= 0, may
    exceed 1."""
    coverage: float
    """Share of real samples whose ball holds some generated sample, in [0, 1]."""


def prdc(
    x: Shaped[Array | np.ndarray, "..."],
    y: Shaped[Array | np.ndarray, "..."],
    *,
    num_neighbours: int = 5,
) -> Prdc:
    """Precision, recall, density and coverage of generated samples x against real samples y.

    The ball of a sample is open, centred there, and reaches to its ``num_neighbours``-th nearest neighbour within
    its own set (itself not counted).

    Bias: for equal laws only the density is 1 on average. The coverage is then
    ``1 - prod_{i=1..k} (num_y - i) / (num_x + num_y - i)`` for k = num_neighbours (about ``1 - 2^(-k)`` for equal
    numbers); precision and recall depend on law and dimension too, a single outlier has a large ball, and all but the
    density grow with num_neighbours. So report the floor beside them and compare values of one num_x, num_y and
    num_neighbours only. Time ``(num_x + num_y)^2 width``; 1024 rows of a distance matrix are held at a time, twice
    ``1024 num`` doubles (0.2 GB for 10,000).

    Args:
        x: generated samples or their features ``[num_x, *event]``, at least ``num_neighbours + 1``.
        y: real ones ``[num_y, *event]``, at least ``num_neighbours + 1``; the numbers may differ.
        num_neighbours: >= 1.

    Raises:
        ValueError: for num_neighbours below one, too few samples, different events, samples that are not finite.

    Source: Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models",
    arXiv:1904.06991; Naeem et al., "Reliable fidelity and diversity metrics for generative models", arXiv:2002.09797.
    """
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours must be >= 1, got {num_neighbours}")
    a, b = flat_pair(x, y, least=num_neighbours + 1)
    radius_a, radius_b = _radii(a, num_neighbours), _radii(b, num_neighbours)
    num_balls = np.zeros(len(a))  # balls of y that hold each x
    recalled, covered = 0, 0
    for start in range(0, len(b), _BLOCK_ROWS):
        distances = cdist(b[start : start + _BLOCK_ROWS], a)
        in_ball_of_b = distances < radius_b[start : start + _BLOCK_ROWS, None]
        num_balls += in_ball_of_b.sum(axis=0)
        covered += int(in_ball_of_b.any(axis=1).sum())
        recalled += int((distances < radius_a).any(axis=1).sum())
    return Prdc(
        precision=float(np.mean(num_balls > 0)),
        recall=recalled / len(b),
        density=float(np.mean(num_balls)) / num_neighbours,
        coverage=covered / len(b),
    )


def label_accuracy(
    x: Shaped[Array | np.ndarray, "..."],
    labels: Shaped[Array | np.ndarray, "..."],
    y: Shaped[Array | np.ndarray, "..."],
    y_labels: Shaped[Array | np.ndarray, "..."],
    *,
    num_neighbours: int = 5,
) -> float:
    """Share of generated samples that their neighbours among real ones take for the class they were told, in [0, 1].

    A sample is of the class whose real samples among its ``num_neighbours`` nearest weigh most, each by the inverse of
    its distance. Real samples have a share below 1 too, where classes overlap or y are few: report that of held-out
    ones beside it. Copies of y reach 1. Samples that are told a class and ignore it reach the share of that class
    among what they look like.

    Args:
        x: generated samples or their features ``[num_x, *event]``, at least one.
        labels: the classes they were told, integers ``[num_x]``.
        y: real ones ``[num_y, *event]``, at least num_neighbours; balanced as those that one would compare with.
        y_labels: their classes, integers ``[num_y]``.
        num_neighbours: >= 1.

    Raises:
        ValueError: for num_neighbours below one, too few samples, different events, samples that are not finite, labels
            that are no integers or not one for each sample. A label that no real sample has counts as missed.

    scikit-learn is imported here.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if num_neighbours < 1:
        raise ValueError(f"num_neighbours must be >= 1, got {num_neighbours}")
    a, b = flat_pair(x, y, least=1)
    if len(b) < num_neighbours:
        raise ValueError(
            f"y has {len(b)} samples, fewer than num_neighbours={num_neighbours}: give more, or lower it"
        )
    told, known = _classes("labels", labels, len(a)), _classes("y_labels", y_labels, len(b))
    judge = KNeighborsClassifier(num_neighbours, weights="distance").fit(b, known)
    return float(np.mean(judge.predict(a) == told))


def _classes(name: str, labels: Array | np.ndarray, num: int) -> np.ndarray:
    classes = np.asarray(labels)
    if classes.shape != (num,) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers, one for each of {num} samples, got {classes.dtype} of shape {classes.shape}"
        )
    return classes


def _radii(rows: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Distance of each row to its num_neighbours-th nearest other row."""
    radii = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK_ROWS):
        distances = cdist(rows[start : start + _BLOCK_ROWS], rows)
        distances.partition(num_neighbours, axis=1)  # place 0 is the row itself
        # Written out: a list of such columns, which are views, would keep every block in memory.
        radii[start : start + _BLOCK_ROWS] = distances[:, num_neighbours]
    return radii
