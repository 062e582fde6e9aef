"""Data that changed between pretraining and fine-tuning."""

from typing import NamedTuple

import numpy as np


class ShiftedData(NamedTuple):
    """Sets of samples ``[num, *event]``, float32."""

    base: np.ndarray
    """What the base flow is pretrained on."""
    target: np.ndarray
    """What it is fine-tuned on."""
    held_out: np.ndarray
    """Target samples for evaluation, disjoint from those of fine-tuning."""
    fresh: np.ndarray
    """As many target samples again, not among the held-out ones: what perfect samples would look like (the floor)."""
