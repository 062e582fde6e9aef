"""Finished runs: what a run folder says of its model, and how a notebook gets it back."""

from gft_jax.loading.finished import Loaded, load
from gft_jax.loading.model_files import MODEL_FILE, Described, describe_model, described_model, save_model
from gft_jax.loading.network_params import check_params, init_params
from gft_jax.loading.run_files import CheckpointName, check_velocity, params_folder, scores_average

__all__ = [
    "MODEL_FILE",
    "CheckpointName",
    "Described",
    "Loaded",
    "check_params",
    "check_velocity",
    "describe_model",
    "described_model",
    "init_params",
    "load",
    "params_folder",
    "save_model",
    "scores_average",
]
