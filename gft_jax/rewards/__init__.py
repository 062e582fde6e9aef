"""Rewards: functions ``reward(x, cond=None)`` -> ``[batch]`` that a flow is to raise, and their check.

Write your own in JAX, or bring one from elsewhere by `from_host`; `check` it on samples of the base before training.
"""

from gft_jax.rewards.base import check, evaluate, value_and_gradient, values_alone
from gft_jax.rewards.functions import (
    brightness,
    class_log_probability,
    colour,
    quadratic,
    scaled,
    smoothness,
)
from gft_jax.rewards.host import from_host

__all__ = [
    "brightness",
    "check",
    "class_log_probability",
    "colour",
    "evaluate",
    "from_host",
    "quadratic",
    "scaled",
    "smoothness",
    "value_and_gradient",
    "values_alone",
]
