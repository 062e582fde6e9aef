"""SiT beside the original in PyTorch, whose weights and outputs are in tests/data/sit_tiny.*, and its other forms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from programs import on_fake_devices

import gft_jax as gft
from gft_jax.drifts import GuidanceParams, from_linen, guide, in_precision
from gft_jax.interop import read_state_dict, sit_of, sit_params, sit_state_dict
from gft_jax.networks import SiT, stacked, unstacked
from gft_jax.networks.sit import PRESETS

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


def primitives(function, *arguments):
    """Names of all primitives in the program of a function."""
    found, pending = set(), [jax.make_jaxpr(function)(*arguments).jaxpr]
    while pending:
        for equation in pending.pop().eqns:
            found.add(equation.primitive.name)
            inner = jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns")
            )
            pending += [getattr(each, "jaxpr", each) for each in inner if hasattr(each, "eqns")]
    return found


@pytest.mark.parametrize(("scan", "remat"), [(True, False), (False, True)])
def test_loop_and_rematerialisation_change_nothing(original, scan, remat):
    module, params, arrays = original
    differentiated = jax.value_and_grad(loss_of(module, arrays["t"], arrays["y"]))
    expected = jax.jit(differentiated)(params, arrays["x"])
    other = module.clone(scan=scan, remat=remat)
    given = stacked(params) if scan else params
    differentiated = jax.value_and_grad(loss_of(other, arrays["t"], arrays["y"]))
    there = primitives(differentiated, given, arrays["x"])
    assert ("scan" in there, any("checkpoint" in name or "remat" in name for name in there)) == (scan, remat)
    loss, gradient = jax.jit(differentiated)(given, arrays["x"])
    gradient = unstacked(gradient) if scan else gradient
    assert distance(loss, expected[0]) <= 1e-6
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, expected[1])), strict=True):
        assert distance(ours, theirs) <= BOUND


def test_stacking_is_undone_and_refuses_other_trees(original):
    _, params, _ = original
    again = unstacked(stacked(params))
    assert again.keys() == params.keys()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(
        ValueError, match=r"parameters with blocks_0, blocks_1, .* are stacked, got final_.*, blocks\."
    ):
        stacked(stacked(params))
    with pytest.raises(ValueError, match="parameters with blocks are unstacked, got blocks_0, blocks_1"):
        unstacked(params)
    with pytest.raises(ValueError, match="one length along their first axis"):
        unstacked({"blocks": {"a": np.zeros(2), "b": np.zeros(3)}})
    with pytest.raises(ValueError, match="are a dict by name, got list"):
        stacked([1])


def test_bfloat16_is_as_near_as_its_roundings(original):
    """About 25 roundings follow on one another in a block and 10 around the blocks, each of 2^-8 at most: if they are
    independent, the square root of 60 times that, 3 percent. They are there, so the error is above one of them."""
    module, params, arrays = original
    rounded = jax.jit(in_precision(from_linen(module)))(params, arrays["t"], arrays["x"], arrays["y"])
    assert rounded.dtype == jnp.float32
    error = distance(rounded, arrays["velocity"])
    assert 2**-9 < error <= 60**0.5 * 2**-8


def test_double_precision_is_kept(original, x64):
    module, params, arrays = original
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, arrays["t"], arrays["x"]))
    velocity = jax.jit(from_linen(module))(*double, arrays["y"])
    assert velocity.dtype == jnp.float64
    assert distance(velocity, arrays["velocity"]) <= BOUND


def test_images_need_not_be_square_and_rows_depend_on_themselves_alone(original):
    module, params, arrays = original
    apply = jax.jit(module.apply)
    x = jnp.concatenate([arrays["x"], arrays["x"] + 1], axis=2)[:, :6]  # 6 x 16 pixels
    velocity = apply({"params": params}, arrays["t"], x, arrays["y"])
    assert velocity.shape == x.shape
    other = apply({"params": params}, arrays["t"], x.at[1, 0, 15].add(0.5), arrays["y"])
    # Attention carries it to every row of pixels of this image, and to no other image.
    changed = (other != velocity).any(axis=(2, 3))
    np.testing.assert_array_equal(changed, np.broadcast_to(np.arange(4)[:, None] == 1, (4, 6)))
    # A turned image is another one: rows and columns have positions of their own.
    turned = apply({"params": params}, arrays["t"], x.swapaxes(1, 2), arrays["y"]).swapaxes(1, 2)
    assert distance(turned, velocity) > 1e-2


def test_presets_have_the_published_parameters():
    """In millions, without the table of positions, for patches of 2: the DiT paper, arXiv:2212.09748."""
    published = {"S/2": 33, "B/2": 130, "L/2": 458, "XL/2": 675}
    assert len(PRESETS) == 12
    for name, millions in published.items():
        module = SiT.preset(name, num_classes=1000, learn_sigma=True, scan=True)
        like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(1), jnp.zeros((1, 32, 32, 4)))
        count = sum(leaf.size for leaf in jax.tree.leaves(like))
        assert count / 1e6 == pytest.approx(millions, abs=0.55)
    assert SiT.preset("XL/8", remat=True) == SiT(1152, 28, 16, 8, remat=True)


def test_the_initial_velocity_is_zero_and_all_of_the_last_layer_learns():
    module = SiT(8, 1, 2, 2, cond_features={"text": 3}, num_classes={"class": 2}, learned_null=True)
    t, x = jnp.full(2, 0.5), jnp.ones((2, 4, 4, 1))
    params = gft.loading.init_params(module, jax.random.key(0), (4, 4, 1))
    gradient = jax.jit(
        jax.grad(
            lambda params: jnp.sum(
                (module.apply({"params": params}, t, x, {"class": np.ones(2, int)}) - x) ** 2
            )
        )
    )(params)
    np.testing.assert_array_equal(jax.jit(module.apply)({"params": params}, t, x), 0)
    moved = {name for name, leaf in gradient["final_linear"].items() if np.abs(leaf).min() > 0}
    assert moved == {"kernel", "bias"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": 10}, "multiple of 4 and of num_heads=2, got 10"),
        ({"num_heads": 3}, "multiple of 4 and of num_heads=3, got 8"),
        ({"depth": 0}, "depth must be >= 1, got 0"),
        ({"patch_size": 0}, "patch_size must be >= 1, got 0"),
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
    ],
)
def test_fields_out_of_range_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        SiT(**{"hidden_size": 8, "depth": 1, "num_heads": 2, "patch_size": 2} | fields)


def test_calls_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'XXL/2' is not a size of SiT; there are S/2, S/4"):
        SiT.preset("XXL/2")
    module, key = SiT(8, 1, 2, 2), jax.random.key(0)

    def called(t, x, cond=None, **fields):
        return jax.eval_shape(module.clone(**fields).init, key, jnp.zeros(t), jnp.zeros(x), cond)

    for shape in ((2, 5, 4, 1), (2, 4, 4), (2, 16)):
        with pytest.raises(ValueError, match="whose sides are multiples of patch_size=2, got shape"):
            called(2, shape)
    with pytest.raises(ValueError, match=r"t must have shape \(2,\)"):
        called(3, (2, 4, 4, 1))
    with pytest.raises(ValueError, match="unconditional network"):
        called(2, (2, 4, 4, 1), jnp.zeros(2, int))
    with pytest.raises(ValueError, match=r"integer labels of shape \(2,\)"):
        called(2, (2, 4, 4, 1), jnp.zeros(2), num_classes=3)
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match="needs a GPU and x in half precision, got cpu and float32"):
            called(2, (2, 4, 4, 1), fused_attention=True)


def test_the_sharding_rule_splits_features():
    rule = gft.parallel.sit_rule(4, min_size=16)
    mu = ".opt_state[0].mu['blocks_3']"
    assert rule(f"{mu}['qkv']['kernel']", (8, 24)) == PartitionSpec(None, "fsdp")
    assert rule(f"{mu}['fc2']['kernel']", (32, 8)) == PartitionSpec("fsdp")
    assert rule(f"{mu}['fc2']['kernel']", (30, 8)) == PartitionSpec(None, "fsdp")
    assert rule(f"{mu}['fc2']['kernel']", (30, 6)) == PartitionSpec()
    assert rule(".params['y_embedder']['embedding']", (11, 8)) == PartitionSpec(None, "fsdp")
    assert rule(".params['blocks']['proj']['kernel']", (4, 8, 8)) == PartitionSpec(None, "fsdp")
    assert rule(".params['blocks']['fc1']['kernel']", (4, 8, 32)) == PartitionSpec(None, None, "fsdp")
    assert rule(".params['blocks']['fc1']['bias']", (4, 6)) == PartitionSpec()
    assert rule(".params['final_linear']['bias']", (8,)) == PartitionSpec()
    assert rule(".step", ()) == PartitionSpec()
    assert gft.parallel.sit_rule(1)(f"{mu}['qkv']['kernel']", (80, 240)) == PartitionSpec()
    with pytest.raises(ValueError, match="num_parts"):
        gft.parallel.sit_rule(0)


@pytest.mark.slow
def test_a_sharded_step_is_that_of_one_device():
    report = on_fake_devices("sit_program.py")
    for scan in (False, True):
        assert float(report[f"difference_{scan}"]) <= 1e-4
        assert float(report[f"size_{scan}"]) > 0.01
        stack = "None, " if scan else ""
        assert report[f"qkv_{scan}"] == f"({stack}None, 'fsdp')"
        assert report[f"fc2_{scan}"] == (f"({stack}'fsdp')" if scan else "('fsdp',)")
