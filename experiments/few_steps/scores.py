"""How a flow is scored that is to sample in a few evaluations."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array

import gft_jax as gft
from experiments.data.shifted import ShiftedData
from experiments.evaluator import NOISE_SEED, Evaluate
from gft_jax.types import Drift, Params, TwoTimeDrift

EVALUATIONS = (1, 2, 4, 8, 100)
"""Of the network, for a sample."""
MOST_EVALUATIONS = max(EVALUATIONS)

FEW_STEP_SAMPLES = "few_step_samples.npz"
"""First samples ``[len(EVALUATIONS), num, *event]`` of the base and every method, in a run folder."""

Flow = Callable[[Params, Array, int], Array]
"""``(params, x0, evaluations)`` -> samples."""

SampleAll = Callable[[Params], dict[int, np.ndarray]]
"""Parameters -> samples ``[num, *event]`` by number of evaluations."""


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


def sampler_of(flow: Flow, data: ShiftedData) -> SampleAll:
    """Samples in each number of `EVALUATIONS`, of the noise of `evaluator`, as many as are held out; compiled once."""
    noise = jax.random.normal(jax.random.split(jax.random.key(NOISE_SEED))[0], data.held_out.shape)
    sample = jax.jit(lambda params: {count: flow(params, noise, count) for count in EVALUATIONS})
    return lambda params: jax.device_get(sample(params))


def few_step_scores(sample: SampleAll, data: ShiftedData, of_drift: Evaluate) -> Evaluate:
    """The scores of any adaptation, and W2 and energy distance of samples in each number of evaluations.

    Scores of samples are those of the most evaluations, and ``one_step_w2`` of one, by this flow: of an average
    velocity these are not those of the drift. There is no ``reached_weight``, which is of pairs that are as those of
    training, and these differ by method.

    Args:
        sample: what `sampler_of` made.
        data: held-out data, and those of fine-tuning.
        of_drift: the scores of any adaptation, of its velocity.
    """

    def evaluate(params: Params) -> tuple[dict[str, float], np.ndarray]:
        scores = of_drift(params)[0]
        scores.pop("reached_weight", None)
        samples = sample(params)
        w2 = {count: gft.metrics.w2(x, data.held_out) for count, x in samples.items()}
        energy = {count: gft.metrics.energy_distance(x, data.held_out) for count, x in samples.items()}
        last = samples[MOST_EVALUATIONS]
        scores |= {
            "w2": w2[MOST_EVALUATIONS],
            "energy_distance": energy[MOST_EVALUATIONS],
            "one_step_w2": w2[1],
        }
        scores |= {"diversity": float(gft.metrics.mean_pairwise_distance(last))}
        if len(data.target) > 1:
            scores["training_energy_distance"] = gft.metrics.energy_distance(last, data.target)
        scores |= {w2_at(count): value for count, value in w2.items()}
        scores |= {energy_at(count): value for count, value in energy.items()}
        return scores, last

    return evaluate
