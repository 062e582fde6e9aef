"""Data that changed between pretraining and fine-tuning."""

from typing import Any, NamedTuple

import numpy as np


class Labels(NamedTuple):
    """Numbers of classes ``[num]``, int32, of the sets of `ShiftedData`."""

    target: np.ndarray
    held_out: np.ndarray
    fresh: np.ndarray


class ShiftedData(NamedTuple):
    """Sets of samples ``[num, *event]``, float32."""

    base: Any
    """What the base flow is pretrained on, an array; None where it comes pretrained."""
    target: Any
    """What it is fine-tuned on: an array, or `gft_jax.data.Rows` that are read from files."""
    held_out: np.ndarray
    """Target samples for evaluation, disjoint from those of fine-tuning."""
    fresh: np.ndarray
    """As many target samples again, not among the held-out ones: what perfect samples would look like (the floor)."""
    labels: Labels | None = None
    """Their classes, where the drift is told them."""
