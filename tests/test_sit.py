"""The network beside the original PyTorch SiT, whose weights and outputs are in tests/data/sit_tiny.*."""

from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from gft_jax.interop import read_state_dict, sit_of, sit_params
from gft_jax.networks import SiT, stacked, unstacked

DATA = Path(__file__).parent / "data"
BOUND = 1e-5


@pytest.fixture(scope="module")
def original():
    """Network, its parameters, and the original's arrays, images as ``[batch, height, width, channels]``."""
    state = read_state_dict(DATA / "sit_tiny.safetensors")
    module, event_shape = sit_of(state, num_heads=3)
    with np.load(DATA / "sit_tiny.npz") as file:
        arrays = {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in file.items()}
    return module, sit_params(state, module, event_shape), arrays


def distance(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_velocity_and_null_class(original):
    module, params, arrays = original
    apply = jax.jit(module.apply)
    inputs = {"params": params}, arrays["t"], arrays["x"]
    assert distance(apply(*inputs, arrays["y"]), arrays["velocity"]) <= BOUND
    without = apply(*inputs)
    assert distance(without, arrays["velocity_null"]) <= BOUND
    np.testing.assert_array_equal(without, apply(*inputs, np.full(4, 10)))
    assert distance(without, arrays["velocity"]) > 100 * BOUND
