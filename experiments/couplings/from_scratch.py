"""Flow matching from the first step on, as the comparisons of couplings train."""

import jax
import jax.numpy as jnp
import optax
from flax import linen

import gft_jax as gft
from gft_jax.pairing import Batches
from gft_jax.types import Drift, Params

_CHUNK = 100


def trained_from_scratch(
    module: linen.Module,
    drift: Drift,
    event_shape: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    stream: Batches,
    seed: int,
    num_steps: int,
) -> Params:
    """Parameters after ``num_steps`` of flow matching on the linear path, from random ones of the seed."""
    key = jax.random.key(seed)
    params = module.init(key, jnp.zeros(1), jnp.zeros((1, *event_shape)))["params"]
    tuner = gft.finetuner(gft.objectives.flow_matching(drift), optimizer, averaging=None)
    runner = gft.parallel.single_device(tuner)
    state = runner.init(key, params=params)
    for step in range(0, num_steps, _CHUNK):
        state, _ = runner.step_many(state, None, stream.many(step, min(_CHUNK, num_steps - step)))
    return state.params
