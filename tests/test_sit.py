"""SiT beside the original in PyTorch, whose weights and outputs are in tests/data/sit_tiny.*, and its other forms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from gft_jax.drifts import GuidanceParams, from_linen, guide
from gft_jax.interop import read_state_dict, sit_of, sit_params, sit_state_dict
from gft_jax.networks import stacked, unstacked

DATA = Path(__file__).parent / "data"
BOUND = 1e-5
"""Largest difference from the original over its largest entry, in float32."""


@pytest.fixture(scope="module")
def original():
    """Network, its parameters, and the original's arrays, images as ``[batch, height, width, channels]``."""
    state = read_state_dict(DATA / "sit_tiny.safetensors")
    module, event_shape = sit_of(state, num_heads=3)
    with np.load(DATA / "sit_tiny.npz") as file:
        arrays = dict(file)
    images = {name: array.transpose(0, 2, 3, 1) for name, array in arrays.items() if array.ndim == 4}
    params = sit_params(state, module, event_shape)
    return module, params, {name: jnp.asarray(array) for name, array in (arrays | images).items()}


def distance(ours, theirs):
    return np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max()


def loss_of(module, t, cond):
    return lambda params, x: jnp.sum(module.apply({"params": params}, t, x, cond) ** 2)


def test_velocity_and_null_class_are_those_of_the_original(original):
    module, params, arrays = original
    apply = jax.jit(module.apply)
    inputs = {"params": params}, arrays["t"], arrays["x"]
    assert distance(apply(*inputs, arrays["y"]), arrays["velocity"]) <= BOUND
    without = apply(*inputs)
    assert distance(without, arrays["velocity_null"]) <= BOUND
    np.testing.assert_array_equal(without, apply(*inputs, np.full(4, 10)))
    assert distance(without, arrays["velocity"]) > 100 * BOUND


def test_gradients_are_those_of_the_original(original):
    module, params, arrays = original
    loss = loss_of(module, arrays["t"], arrays["y"])
    by_params, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, arrays["x"])
    assert distance(by_x, arrays["grad_x"]) <= BOUND
    there = sit_state_dict(by_params, module, (8, 8, 4))
    assert distance(there["blocks.0.attn.qkv.weight"], arrays["grad_qkv0"]) <= BOUND
    bias = there["final_layer.linear.bias"]
    assert distance(bias, arrays["grad_final_bias"]) <= BOUND
    # The second half of the channels of every pixel is not part of the velocity.
    np.testing.assert_array_equal(bias.reshape(4, 8)[:, 4:], 0)


def test_guided_samples_are_those_of_the_original(original):
    module, params, arrays = original
    sample = gft.sampling.sample_ode(
        guide(from_linen(module), np.int64(module.num_classes)),
        GuidanceParams(params, float(arrays["cfg_scale"])),
        arrays["x"],
        cond=arrays["y"],
        num_steps=8,
    )
    assert distance(sample.x, arrays["euler8_cfg"]) <= BOUND


@pytest.mark.parametrize(("scan", "remat"), [(True, False), (False, True), (True, True)])
def test_loop_and_rematerialisation_change_nothing(original, scan, remat):
    module, params, arrays = original
    expected = jax.jit(jax.value_and_grad(loss_of(module, arrays["t"], arrays["y"])))(params, arrays["x"])
    other = module.clone(scan=scan, remat=remat)
    given = stacked(params) if scan else params
    loss, gradient = jax.jit(jax.value_and_grad(loss_of(other, arrays["t"], arrays["y"])))(given, arrays["x"])
    gradient = unstacked(gradient) if scan else gradient
    assert distance(loss, expected[0]) <= 1e-6
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, expected[1])), strict=True):
        assert distance(ours, theirs) <= BOUND
