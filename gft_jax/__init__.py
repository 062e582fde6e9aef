"""gft_jax: gradual fine-tuning of flow matching models, in JAX."""

from importlib import metadata

from gft_jax import (
    checkpoints,
    control_costs,
    cooling,
    couplings,
    data,
    density_ratio,
    diffusions,
    drifts,
    evaluation,
    gaussian,
    metrics,
    networks,
    objectives,
    pairing,
    parallel,
    paths,
    reflow,
    rewards,
    sampling,
)
from gft_jax.finetuning import FineTuner, StepInfo, TrainState, finetuner, full, mean_loss
from gft_jax.loading import load
from gft_jax.types import Adapter, Batch, Drift, Objective, Reward, Terms, TwoTimeDrift

__version__ = metadata.version("gft_jax")

__all__ = [
    "Adapter",
    "Batch",
    "Drift",
    "FineTuner",
    "Objective",
    "Reward",
    "StepInfo",
    "Terms",
    "TrainState",
    "TwoTimeDrift",
    "checkpoints",
    "control_costs",
    "cooling",
    "couplings",
    "data",
    "density_ratio",
    "diffusions",
    "drifts",
    "evaluation",
    "finetuner",
    "full",
    "gaussian",
    "load",
    "mean_loss",
    "metrics",
    "networks",
    "objectives",
    "pairing",
    "parallel",
    "paths",
    "reflow",
    "rewards",
    "sampling",
]
