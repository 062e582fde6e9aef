"""How samples of the digits flow are scored: always from the same noise, always by the raw parameters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gft_jax as gft
from gft_jax.types import Drift, Params

NOISE_SEED = 20_260_122

Evaluate = Callable[[Params], tuple[dict[str, float], np.ndarray]]
"""Parameters -> scores, and the samples they belong to."""


def evaluator(drift: Drift, held_out: np.ndarray, num_steps: int) -> Evaluate:
    """Scores of samples by Euler's method against held-out data.

    ``w2``: exact Wasserstein-2 distance; ``energy_distance``; ``path_length``: mean Euclidean length of the
    sampling trajectories; ``one_step_w2``: W2 of samples by a single Euler step.
    """
    noise = jax.random.normal(jax.random.key(NOISE_SEED), held_out.shape)

    @jax.jit
    def sample(params: Params) -> Any:
        return gft.sampling.sample_ode(drift, params, noise, num_steps=num_steps, save_steps=True)

    one_step = jax.jit(lambda params: gft.sampling.sample_ode(drift, params, noise, num_steps=1).x)

    def evaluate(params: Params) -> tuple[dict[str, float], np.ndarray]:
        result = sample(params)
        samples = np.asarray(result.x)
        scores = {
            "w2": float(gft.metrics.w2(samples, held_out)),
            "energy_distance": float(gft.metrics.energy_distance(samples, held_out)),
            "path_length": float(np.mean(gft.metrics.path_length(result.trajectory))),
            "one_step_w2": float(gft.metrics.w2(np.asarray(one_step(params)), held_out)),
        }
        return scores, samples

    return evaluate


def floor(held_out: np.ndarray, fresh: np.ndarray) -> dict[str, float]:
    """Scores of real samples: other images of the target, as many as are held out."""
    return {
        "w2": float(gft.metrics.w2(fresh, held_out)),
        "energy_distance": float(gft.metrics.energy_distance(fresh, held_out)),
    }
