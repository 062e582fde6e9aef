"""What an evaluation is given: checked before any long work."""

import numbers
from typing import Any

import numpy as np
from jaxtyping import Array, Shaped

from gft_jax.metrics.rows import flat_pair, flat_rows

Samples = Shaped[Array | np.ndarray, "..."]

LEAST_SAMPLES = 12
"""Samples that a card needs at the least. Intervals need more, see `gft_jax.evaluation.Measure`."""
MOST_BY_DEFAULT = 1000


def check_count(name: str, value: Any, least: int) -> None:
    """Refuses what is no integer of at least ``least``, with a ValueError."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_sets(
    held_out: np.ndarray, fresh: Samples | None, old_data: Samples | None, training_data: Samples | None
) -> None:
    """Checks the real samples of a card.

    Raises:
        ValueError: for too few samples, other events than those of the held-out ones, samples that are not finite.
    """
    flat_rows("held_out", held_out, least=LEAST_SAMPLES)
    for name, rows, least in (
        ("fresh", fresh, 1),
        ("old_data", old_data, 2 * LEAST_SAMPLES),
        ("training_data", training_data, LEAST_SAMPLES),
    ):
        if rows is not None:
            flat_rows(name, rows, least)
            flat_pair(rows, held_out, least=1)


def checked_number(given: int | None, num_held_out: int, num_real: int) -> int:
    """Number of samples of a card, given or the largest by default.

    Raises:
        ValueError: if there are too few real samples for it.
    """
    most = min(num_held_out, num_real // 2)
    if most < LEAST_SAMPLES:
        raise ValueError(
            f"a floor is between two sets of at least {LEAST_SAMPLES} real samples, but held_out and fresh together "
            f"have {num_real}: give at least {2 * LEAST_SAMPLES}"
        )
    if given is None:
        return min(most, MOST_BY_DEFAULT)
    if not isinstance(given, numbers.Integral) or not LEAST_SAMPLES <= given <= most:
        raise ValueError(
            f"num_samples is {given}; with {num_held_out} held-out samples and {num_real} real ones in all it must be "
            f"an integer between {LEAST_SAMPLES} and {most}: more real samples, as fresh, allow more"
        )
    return given


def check_source_rows(x0: Any, num: int, held_out: np.ndarray) -> None:
    """Refuses source rows that are not one for each sample, of the event of the data, with a ValueError."""
    expected = (num, *held_out.shape[1:])
    if np.shape(x0) != expected:
        raise ValueError(
            f"the source must draw a row for each of its {num} keys, of the event of held_out: expected shape "
            f"{expected}, got {np.shape(x0)}"
        )
    flat_rows("rows of the source", x0, least=1)
