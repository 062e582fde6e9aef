"""Cooling: the temperature of gradual fine-tuning by training step.

At temperature ``beta >= 0`` the optimal drift is the blend ``w u* + (1 - w) v_pre`` of the target drift ``u*``
and the pretrained drift ``v_pre``, with the *target weight* ``w = 1 / (1 + beta)`` in (0, 1]. Training starts
warm (small ``w``) and cools to temperature zero (``w = 1``), where it is plain flow matching.

Schedules fix the temperature in advance: `constant`, `linear`, `cosine`, `polynomial`, `geometric`,
`piecewise`, and `from_schedule` for any other. Each is drawn either in ``temperature`` or in
``target_weight``, whichever keyword is given; prefer the target weight, since all of ``beta > 10`` means
"hardly moved". `self_paced` cools as the student follows.

Temperature and schedules: "Gradual Fine-Tuning for Flow Matching Models", arXiv:2601.22495. The measured target
weight and self-paced cooling are this library's own.
"""

from gft_jax.cooling.schedules import (
    constant,
    cosine,
    from_schedule,
    geometric,
    linear,
    piecewise,
    polynomial,
)
from gft_jax.cooling.self_paced import SelfPacedState, self_paced
from gft_jax.cooling.temperature import (
    Cooling,
    DisplacementAverage,
    MeanDisplacement,
    displacement_average,
    effective_target_weight,
    target_weight,
    temperature,
)

__all__ = [
    "Cooling",
    "DisplacementAverage",
    "MeanDisplacement",
    "SelfPacedState",
    "constant",
    "cosine",
    "displacement_average",
    "effective_target_weight",
    "from_schedule",
    "geometric",
    "linear",
    "piecewise",
    "polynomial",
    "self_paced",
    "target_weight",
    "temperature",
]
