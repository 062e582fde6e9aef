"""How exact an average velocity becomes, by the largest frequency of the network's features of time.

    python -m experiments.few_steps.frequencies

Pretrained on N(-3, 0.25 I) in the plane, fine-tuned by gradual MeanFlow to N(3, 0.25 I), where one step from N(0, I) is
known in closed form. Some minutes on two CPU cores.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import gft_jax as gft
from gft_jax.gaussian import Gaussian
from gft_jax.loading import init_params
from gft_jax.types import Objective, Params

CENTRE, DEVIATION = 3.0, 0.5
BATCH_SIZE, CHUNK, NUM_POINTS = 128, 100, 2000
LEARNING_RATE = 1e-3


class Error(NamedTuple):
    """Of the one-step samples of one run."""

    root_mean_square: float
    """Distance to where the flow leads, by coordinate."""
    deviation: float
    """Standard deviation of the samples, 0.5 of the law."""


def main(
    frequencies: tuple[float, ...] = (50.0, 16.0, 8.0, 4.0, 2.0),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 3000,
) -> None:
    """Prints the table.

    Args:
        frequencies: largest angular frequencies of the features of t, each at least 1.
        seeds: of data, parameters and batches.
        steps: of pretraining, and again of fine-tuning.
    """
    print(
        "| `max_frequency` | root mean square error, by seed | standard deviation, by seed (0.5 of the law) |"
    )
    print("|---|---|---|")
    for frequency in frequencies:
        errors = [
            one_step_error(frequency, seed, steps) for seed in tqdm(seeds, desc=f"{frequency:g}", leave=False)
        ]
        cells = (", ".join(f"{value:.2f}" for value in values) for values in zip(*errors, strict=True))
        print(f"| {frequency:g} | {' | '.join(cells)} |", flush=True)


def one_step_error(frequency: float, seed: int, num_steps: int) -> Error:
    """Pretrains and fine-tunes, and compares one-step samples with the closed form."""
    network = gft.networks.ResidualMLP(hidden=64, max_frequency=frequency)
    two_times = network.clone(two_times=True)
    drift = gft.drifts.from_linen(network)
    average = gft.drifts.two_times(gft.drifts.from_linen(two_times))
    old, new = (_points(seed, sign) for sign in (-1, 1))
    key_start, key_second = jax.random.split(jax.random.key(seed))
    fresh = init_params(network, key_start, (2,))
    objective = gft.objectives.flow_matching(drift)
    base = _trained(objective, gft.cooling.constant(temperature=0.0), old, None, fresh, num_steps, seed)
    start = gft.networks.two_time_params(base, init_params(two_times, key_second, (2,)))
    cooling = gft.cooling.linear(target_weight=(0.05, 1.0), num_steps=num_steps * 3 // 4)
    objective = gft.objectives.gradual_mean_flow(average)
    params = _trained(objective, cooling, new, start, None, num_steps, seed)

    noise = jax.random.normal(jax.random.key(seed + 1), (NUM_POINTS, 2))
    samples = gft.sampling.sample_average(average, params, noise).x
    source = Gaussian(jnp.zeros(2), jnp.eye(2))
    target = Gaussian(jnp.full(2, CENTRE), DEVIATION**2 * jnp.eye(2))
    exact = gft.gaussian.average_velocity(gft.paths.linear(), source, target)
    at_start = jnp.zeros(NUM_POINTS)
    ends = noise + exact(at_start, at_start + 1, noise)
    return Error(float(jnp.sqrt(jnp.mean((samples - ends) ** 2))), float(jnp.mean(jnp.std(samples, axis=0))))


def _points(seed: int, sign: int) -> np.ndarray:
    rng = np.random.default_rng([seed, sign + 1])
    return rng.normal(sign * CENTRE, DEVIATION, (NUM_POINTS, 2)).astype(np.float32)


def _trained(
    objective: Objective,
    cooling: Any,
    data: np.ndarray,
    base_params: Params | None,
    params: Params | None,
    num_steps: int,
    seed: int,
) -> Params:
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    runner = gft.parallel.single_device(gft.finetuner(objective, optimizer, cooling))
    stream = gft.pairing.batches(data, batch_size=BATCH_SIZE, seed=seed)
    state = runner.init(jax.random.key(seed), base_params, params)
    for step in range(0, num_steps, CHUNK):
        state, _ = runner.step_many(state, base_params, stream.many(step, min(CHUNK, num_steps - step)))
    return state.params


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.few_steps.frequencies", description=__doc__)
