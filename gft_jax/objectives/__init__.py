"""Training methods as pure functions: one file per method, none of which knows optimisers or devices."""

from gft_jax.objectives import time_sampling, weighting
from gft_jax.objectives.flow_matching import flow_matching
from gft_jax.objectives.gradual import gradual, rolled_out
from gft_jax.objectives.regularised import l2_sp, with_replay
from gft_jax.objectives.velocity_and_score import velocity_and_score

__all__ = [
    "flow_matching",
    "gradual",
    "l2_sp",
    "rolled_out",
    "time_sampling",
    "velocity_and_score",
    "weighting",
    "with_replay",
]
