"""Training methods as pure functions: one file per method, none of which knows optimisers or devices."""

from gft_jax.objectives import time_sampling, weighting
from gft_jax.objectives.adjoint_matching import adjoint_matching
from gft_jax.objectives.adjoints import full_adjoint, lean_adjoint
from gft_jax.objectives.average_target import TargetGuidance
from gft_jax.objectives.flow_matching import flow_matching
from gft_jax.objectives.gradient_clip import QuantileClip
from gft_jax.objectives.gradual import gradual, rolled_out
from gft_jax.objectives.mean_flow import gradual_mean_flow, mean_flow
from gft_jax.objectives.memoryless import memoryless_adjoint_matching
from gft_jax.objectives.regularised import l2_sp, with_replay
from gft_jax.objectives.reward_ascent import draft, refl
from gft_jax.objectives.reward_weighting import reward_weighted
from gft_jax.objectives.terminal import terminal
from gft_jax.objectives.value_guidance import value_guidance
from gft_jax.objectives.velocity_and_score import velocity_and_score

__all__ = [
    "QuantileClip",
    "TargetGuidance",
    "adjoint_matching",
    "draft",
    "flow_matching",
    "full_adjoint",
    "gradual",
    "gradual_mean_flow",
    "l2_sp",
    "lean_adjoint",
    "mean_flow",
    "memoryless_adjoint_matching",
    "refl",
    "reward_weighted",
    "rolled_out",
    "terminal",
    "time_sampling",
    "value_guidance",
    "velocity_and_score",
    "weighting",
    "with_replay",
]
