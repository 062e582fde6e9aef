"""One run: a flow from eight gaussians to two moons, trained with a coupling and measured on fresh points."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gft_jax as gft
from experiments.configs.settings import CouplingName
from experiments.couplings.comparison import Outcome
from experiments.couplings.from_scratch import trained_from_scratch
from experiments.data.eight_to_moons import eight_gaussians, moons
from experiments.methods import COUPLINGS
from experiments.plain_mlp import PlainMLP
from gft_jax.types import Drift, Params

WIDTH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
BATCH_SIZE = 256
NUM_DATA = 65_536
NUM_POINTS = 1000
EULER_STEPS = 100
NUM_PATHS = 200
"""Paths that are kept for the figure."""
_DATA_SEED, _TEST_SEED = 20_230_201, 20_230_202


def trained(coupling: CouplingName, seed: int, num_steps: int) -> tuple[Drift, Params]:
    """Drift and parameters after ``num_steps`` of flow matching on the linear path."""
    module = PlainMLP(WIDTH)
    drift = gft.drifts.from_linen(module)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    stream = gft.pairing.batches(
        moons(np.random.default_rng(_DATA_SEED), NUM_DATA),
        batch_size=BATCH_SIZE,
        seed=seed,
        coupling=COUPLINGS[coupling](),
        source=eight_gaussians,
    )
    return drift, trained_from_scratch(module, drift, (2,), optimizer, stream, seed, num_steps)


def measured(drift: Drift, params: Params, seed: int) -> Outcome:
    """Numbers of a flow on test points of its seed, which are the same for every coupling, and some of its paths.

    Returns:
        The numbers: ``w2``, exact W2 of samples by Euler steps and as many points of the moons; ``one_step_w2``, of
        samples by one step; ``normalised_path_energy``; ``path_length``; ``floor``, W2 of two sets of points of the
        moons. The array ``paths`` ``[EULER_STEPS + 1, NUM_PATHS, 2]``.
    """
    key = jax.random.fold_in(jax.random.key(_TEST_SEED), seed)
    x0, _ = eight_gaussians(jax.random.split(key, NUM_POINTS))
    generator = np.random.default_rng([_TEST_SEED, seed])
    data, others = moons(generator, NUM_POINTS), moons(generator, NUM_POINTS)

    @jax.jit
    def solve(params: Params) -> Any:
        sample = gft.sampling.sample_ode(drift, params, x0, num_steps=EULER_STEPS, save_steps=True)
        return sample, gft.sampling.sample_ode(drift, params, x0, num_steps=1).x

    sample, one_step = solve(params)
    energies = gft.metrics.kinetic_energy(sample.trajectory, sample.times)
    numbers = {
        "w2": gft.metrics.w2(sample.x, data),
        "one_step_w2": gft.metrics.w2(one_step, data),
        "normalised_path_energy": gft.metrics.normalised_path_energy(energies, gft.metrics.w2(x0, data)),
        "path_length": float(jnp.mean(gft.metrics.path_length(sample.trajectory))),
        "floor": gft.metrics.w2(others, data),
    }
    return Outcome(
        {name: float(value) for name, value in numbers.items()},
        {"paths": np.asarray(sample.trajectory[:, :NUM_PATHS])},
    )
