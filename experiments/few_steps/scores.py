"""How a flow is scored that is to sample in a few evaluations."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

import gft_jax as gft
from experiments.data.shifted import ShiftedData
from experiments.evaluator import NOISE_SEED, Evaluate
from gft_jax.types import Drift, Params, TwoTimeDrift

EVALUATIONS = (1, 2, 4, 8, 100)
"""Of the network, for a sample."""

FEW_STEP_SAMPLES = "few_step_samples.npz"
"""What `few_step_samples` gave of the base and every method, in a run folder."""

Flow = Callable[[Params, Array, int], Array]
"""``(params, x0, evaluations)`` -> samples."""


def by_euler(drift: Drift) -> Flow:
    """Samples by Euler's method, whose steps cost an evaluation each."""
    return lambda params, x0, count: gft.sampling.sample_ode(drift, params, x0, num_steps=count).x


def by_average(drift: TwoTimeDrift) -> Flow:
    """Samples by steps of the average velocity, likewise."""
    return lambda params, x0, count: gft.sampling.sample_average(drift, params, x0, num_steps=count).x


def w2_at(count: int) -> str:
    """Name of the score of samples in so many evaluations."""
    return f"w2_at_{count}"


def energy_at(count: int) -> str:
    """Name of the other one."""
    return f"energy_distance_at_{count}"


def few_step_scores(flow: Flow, data: ShiftedData, of_drift: Evaluate) -> Evaluate:
    """The scores of any adaptation, and W2 and energy distance of samples in each number of evaluations.

    ``w2``, ``energy_distance`` and the samples are those of the most evaluations, and ``one_step_w2`` of one, by this
    flow: of an average velocity these are not those of the drift. All samples start from the noise of `evaluator`.

    Args:
        flow: how the model samples.
        data: held-out data.
        of_drift: the scores of any adaptation, of its velocity.
    """
    sample = _sampler(flow, data)

    def evaluate(params: Params) -> tuple[dict[str, float], np.ndarray]:
        scores = of_drift(params)[0]
        samples: dict[int, np.ndarray] = jax.device_get(sample(params))
        w2 = {count: gft.metrics.w2(x, data.held_out) for count, x in samples.items()}
        energy = {count: gft.metrics.energy_distance(x, data.held_out) for count, x in samples.items()}
        most, least = max(EVALUATIONS), min(EVALUATIONS)
        scores |= {"w2": w2[most], "energy_distance": energy[most], "one_step_w2": w2[least]}
        scores |= {w2_at(count): value for count, value in w2.items()}
        scores |= {energy_at(count): value for count, value in energy.items()}
        return scores, samples[most]

    return evaluate


def few_step_samples(flow: Flow, data: ShiftedData, params: Params, num: int) -> np.ndarray:
    """The first samples in each number of `EVALUATIONS`, ``[len(EVALUATIONS), num, *event]``, of the noise above."""
    samples = _sampler(flow, data)(params)
    return np.stack([np.asarray(samples[count][:num]) for count in EVALUATIONS])


def _sampler(flow: Flow, data: ShiftedData) -> Callable[[Params], Any]:
    # As `evaluator` draws it.
    noise = jax.random.normal(jax.random.split(jax.random.key(NOISE_SEED))[0], data.held_out.shape)
    return jax.jit(lambda params: {count: flow(params, noise, count) for count in EVALUATIONS})
