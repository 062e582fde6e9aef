import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gft_jax as gft
from gft_jax.loading import init_params
from gft_jax.networks import UNet

BATCH, EVENT = 3, (4, 8, 2)
SMALL = {
    "channels": 4,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "num_heads": 2,
    "norm_groups": 2,
}


def spread(shapes):
    """Parameters by a formula: waves of the size that keeps activations near one, and scales about one."""

    def leaf(number, path, shape):
        fan_in = math.prod(shape[:-1]) if len(shape) > 1 else 4
        wave = np.cos(0.37 * np.arange(math.prod(shape)) ** 1.1 + number).reshape(shape) / np.sqrt(fan_in)
        return jnp.asarray(wave + (path[-1].key == "scale"), jnp.float32)

    paths, structure = jax.tree.flatten_with_path(shapes)
    return jax.tree.unflatten(
        structure, [leaf(number, path, value.shape) for number, (path, value) in enumerate(paths)]
    )


def example(cond=None, dtype=jnp.float32, **fields):
    """Network, parameters none of which is zero, t and x."""
    module = UNet(**SMALL | fields)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, *EVENT)), dtype)
    t = jnp.linspace(0.1, 0.9, BATCH, dtype=dtype)
    return module, spread(jax.eval_shape(module.init, jax.random.key(0), t, x, cond)["params"]), t, x


def test_velocity_and_gradient_are_those_of_the_original_in_pytorch():
    """torchcfm's U-Net with the same parameters (`spread`), and sinusoids of t with this library's frequencies."""
    with np.load(Path(__file__).parent / "data" / "unet_tiny.npz") as file:
        original = {name: file[name] for name in file.files}
    module = UNet(32, (1, 2), 1, (8,), 2, 32, scale_shift=True, num_classes=3)
    t, x, cond = (jnp.asarray(original[name]) for name in ("t", "x", "cond"))
    params = spread(jax.eval_shape(module.init, jax.random.key(0), t, x)["params"])

    @jax.jit
    def both(x):
        def squares(x):
            velocity = module.apply({"params": params}, t, x, cond)
            return jnp.sum(velocity**2), velocity

        (_, velocity), gradient = jax.value_and_grad(squares, has_aux=True)(x)
        return velocity, gradient

    for found, name in zip(both(x), ("velocity", "gradient"), strict=True):
        assert np.abs(found - original[name]).max() <= 1e-5 * np.abs(original[name]).max()


def test_rows_depend_on_themselves_alone_and_on_all_their_inputs():
    module, params, t, x = example(num_classes=3)
    apply = jax.jit(lambda *given: module.apply({"params": params}, *given))
    cond = np.array([0, 2, 3])
    v = apply(t, x, cond)
    assert v.dtype == x.dtype

    def changed_rows(t, x, cond):
        return (np.abs(apply(t, x, cond) - v).reshape(BATCH, -1).max(axis=1) > 1e-4).tolist()

    only_second = [False, True, False]
    assert changed_rows(t, x, cond) == [False] * BATCH
    assert changed_rows(t.at[1].add(0.05), x, cond) == only_second
    assert changed_rows(t, x.at[1, 0, 0, 0].add(0.5), cond) == only_second
    assert changed_rows(t, x, np.array([0, 1, 3])) == only_second
    without = jax.jit(lambda t, x: module.apply({"params": params}, t, x))(t, x)
    np.testing.assert_allclose(without[2], v[2], rtol=1e-5, atol=1e-6)  # no condition is the null class
    assert np.abs(without[0] - v[0]).max() > 1e-4
    # One pixel reaches all others, through the attention at the bottom if not before.
    moved = apply(t, x.at[1, 0, 0, 0].add(0.5), cond)[1] - v[1]
    assert np.abs(moved).min() > 0


def test_the_defaults_are_the_published_network_and_the_initial_velocity_is_zero():
    shapes = jax.eval_shape(lambda: init_params(UNet(), jax.random.key(0), (32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307  # torchcfm's U-Net for CIFAR-10
    attention = {name for name in shapes if name.endswith("attention")}
    at_16 = {"down_1_0", "down_1_1", "up_1_0", "up_1_1", "up_1_2", "middle"}
    assert attention == {f"{name}_attention" for name in at_16}
    module, _, t, x = example(num_classes=2)
    velocity, _ = jax.jit(module.init_with_output)(jax.random.key(0), t, x, jnp.arange(BATCH))
    np.testing.assert_array_equal(velocity, 0)


def test_precision_is_that_of_the_events(x64):
    module, params, t, x = example(dtype=jnp.float64)
    apply = jax.jit(lambda t, x: module.apply({"params": params}, t, x))
    double = apply(t, x)
    assert double.dtype == jnp.float64
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.1)):
        rounded = apply(t.astype(jnp.float32), x.astype(dtype))
        assert rounded.dtype == dtype
        error = np.abs(rounded.astype(jnp.float64) - double).max() / np.abs(double).max()
        assert 0 < error < tolerance


def test_steps_in_chunks_are_the_single_steps():
    module, params, *_ = example()
    objective = gft.objectives.flow_matching(gft.drifts.from_linen(module), gft.paths.linear())
    runner = gft.parallel.single_device(gft.finetuner(objective, optax.sgd(0.1)))
    x1 = np.random.default_rng(1).normal(size=(8, *EVENT)).astype(np.float32)
    stream = gft.pairing.batches(x1, batch_size=2, seed=0)
    state = runner.init(jax.random.key(0), params=params)
    for step in range(2):
        state, _ = runner.step(state, None, stream.batch(step))
    chunked, _ = runner.step_many(runner.init(jax.random.key(0), params=params), None, stream.many(0, 2))
    for one, other, start in zip(*map(jax.tree.leaves, (state.params, chunked.params, params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        assert np.abs(one - start).max() > 1e-5  # every parameter is trained


def test_a_network_is_made_again_from_its_description(tmp_path):
    module = UNet(**SMALL, num_classes=2)
    gft.loading.describe_model(tmp_path, module, EVENT)
    model = json.loads((tmp_path / "model.json").read_text())
    again = getattr(gft.networks, model["network"])(**model["settings"])
    first, second = (
        jax.eval_shape(lambda m=m: init_params(m, jax.random.key(0), EVENT)) for m in (module, again)
    )
    assert first == second


def test_construction_names_the_bad_field():
    rows = [
        ({"channels": 0}, "channels must be >= 1, got 0"),
        ({"num_res_blocks": 0}, "num_res_blocks must be >= 1, got 0"),
        ({"num_heads": 3}, "num_heads=3 does not divide the width 4"),
        ({"norm_groups": 3}, "norm_groups=3 does not divide channels=4"),
        ({"multipliers": ()}, r"multipliers must be one or more integers >= 1, got \(\)"),
        ({"multipliers": (1, 0)}, r"got \(1, 0\)"),
        ({"attention_resolutions": (0,)}, r"attention_resolutions must be >= 1, got \(0,\)"),
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"learned_null": True}, "num_classes"),
    ]
    for fields, message in rows:
        with pytest.raises(ValueError, match=message):
            UNet(**SMALL | fields)


def test_wrong_inputs_are_named_with_their_shapes():
    t, x = jnp.zeros(BATCH), jnp.zeros((BATCH, *EVENT))
    rows = [
        ({}, t, x[0], None, r"images \[batch, height, width, channels\].*got shape \(4, 8, 2\)"),
        ({}, t, x[:, :3], None, r"multiples of 2, for the 2 levels.*\(3, 3, 8, 2\)"),
        ({"attention_resolutions": (16,)}, t, x, None, r"\(16,\) holds none of the sides \[4, 2\]"),
        ({}, t[:2], x, None, r"t must have shape \(3,\).*got shape \(2,\)"),
        ({}, t, x, jnp.zeros(BATCH, int), "unconditional"),
        ({"num_classes": 2}, t, x, jnp.zeros(BATCH), "integer labels"),
    ]
    for fields, times, images, cond, message in rows:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(UNet(**SMALL | fields).init, jax.random.key(0), times, images, cond)
