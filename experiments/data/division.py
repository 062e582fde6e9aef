"""Which rows are trained on, and which are judged by."""

from typing import NamedTuple

import numpy as np

_SEED = 20_261_201


class Division(NamedTuple):
    """Numbers of the rows of each set of `ShiftedData`."""

    target: np.ndarray
    held_out: np.ndarray
    fresh: np.ndarray


def divide(labels: np.ndarray | None, num_rows: int, share: float, most: int) -> Division:
    """Which rows are trained on, and which are judged by, always the same ones.

    ``held_out`` go through the classes in turn; they are at most ``most`` of the share that is held out, and
    no more than those to train on, of which ``fresh`` are as many: a floor holds real data against real data.

    Args:
        labels: classes of the rows ``[num_rows]``, or None.
        num_rows: number of rows.
        share: of the rows that are not trained on, above 0, below 1.
        most: of held-out rows that are used, >= 2.

    Raises:
        ValueError: if fewer than two rows were held out, or none left.
    """
    num_held = round(share * num_rows)
    if num_held < 2 or num_rows - num_held < 2:
        raise ValueError(
            f"of {num_rows} images, the share {share:g} that is held out is {num_held}; at least two must be held out, "
            "and two be left: give another --held-out, or more images"
        )
    order = np.random.default_rng(_SEED).permutation(num_rows)
    held = order[:num_held]
    if labels is not None:
        held = held[in_turn(labels[held])]
    held = held[: min(most, num_rows - num_held)]
    return Division(np.sort(order[num_held:]), held, order[num_held:][: len(held)])


def in_turn(labels: np.ndarray) -> np.ndarray:
    """An order of the rows ``[num]`` in which the first of each class come first, then the second of each."""
    place = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        place[of_class] = np.arange(len(of_class))
    return np.lexsort((labels, place))
