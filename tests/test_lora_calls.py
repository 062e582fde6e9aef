"""Adapted drifts by how they are called: with and without a condition, in several precisions, on the library's U-Net;
and adapters that have no part in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from lora_toy import moved

import gft_jax as gft
from gft_jax.drifts import cast, from_linen
from gft_jax.networks.lora import LoRAParams, low_rank

T, X, COND = jnp.linspace(0.2, 0.8, 2), jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.ones((2, 4))


class Guided(nn.Module):
    """A layer for the condition, where there is one."""

    @nn.compact
    def __call__(self, t, x, cond=None):
        h = nn.Dense(8, name="a")(x)
        if cond is not None:
            h += nn.Dense(8, name="c")(cond)
        return nn.Dense(3, name="z")(jnp.tanh(h))


class OwnLayer(nn.Module):
    """A kernel that no layer of linen applies."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.normal(), (3, 3))


class OfOwnLayer(nn.Module):
    """A layer of linen and one that is not."""

    @nn.compact
    def __call__(self, t, x, cond=None):
        return OwnLayer(name="own")(nn.Dense(3, name="d")(x))


class Block(nn.Module):
    """A layer within another module."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="d")(x)


CompiledBlock = nn.jit(Block)


class Compiled(nn.Module):
    """A block that is compiled once for all calls."""

    @nn.compact
    def __call__(self, t, x, cond=None):
        return CompiledBlock(name="block")(x)


def adapted_and_away(module, base, **options):
    """Adaptation of all kernels, the adapted drift on activations, and its parameters away from the base."""
    lora = low_rank(["*kernel"], rank=2, **options)
    params = LoRAParams(base, moved(lora.adapter.init(jax.random.key(0), base)))
    return lora, lora.on_activations(from_linen(module)), params


def params_of(module, *args):
    return module.init(jax.random.key(0), T, X, *args)["params"]


@pytest.mark.parametrize("order", [(None, COND), (COND, None)], ids=["without first", "with first"])
def test_a_layer_that_some_calls_pass_over_is_adapted_in_the_others(order):
    base = params_of(Guided(), COND)
    lora, student, params = adapted_and_away(Guided(), base)
    merged = lora.merge(*params)
    for cond in order:
        expected = from_linen(Guided())(merged, T, X, cond)
        assert np.abs(expected - from_linen(Guided())(base, T, X, cond)).max() > 0.1
        np.testing.assert_allclose(student(params, T, X, cond), expected, rtol=1e-5, atol=1e-6)


def test_adapters_without_a_part_in_the_velocity_are_named():
    base = params_of(Guided(), COND)
    base["sub"] = {"a": base["a"]}  # not a part of the network; its path ends as that of a layer does
    lora, student, _ = adapted_and_away(Guided(), base)
    for drift in (student, lora.by_merging(from_linen(Guided()))):
        assert lora.unused(drift, base, T, X) == ["c/kernel", "sub/a/kernel"]
        assert lora.unused(drift, base, T, X, COND) == ["sub/a/kernel"]
    base = params_of(Compiled())
    lora, student, params = adapted_and_away(Compiled(), base)
    for _ in range(2):  # the block is not traced again
        assert lora.unused(student, base, T, X) == []
        student(params, T, X)


def test_the_kernel_of_a_layer_of_ones_own_is_refused_on_activations_alone():
    base = params_of(OfOwnLayer())
    lora, student, params = adapted_and_away(OfOwnLayer(), base)
    with pytest.raises(ValueError, match="OwnLayer own has a kernel with adapters and is no dense or"):
        student(params, T, X)
    assert lora.unused(lora.by_merging(from_linen(OfOwnLayer())), base, T, X) == []


def test_a_block_compiled_for_one_scale_has_another_in_another_adaptation():
    base = params_of(Compiled())
    for alpha in (1.0, 7.0):
        lora, student, params = adapted_and_away(Compiled(), base, alpha=alpha)
        expected = from_linen(Compiled())(lora.merge(*params), T, X)
        np.testing.assert_allclose(student(params, T, X), expected, rtol=1e-5, atol=1e-6)


def test_small_updates_of_a_bfloat16_base_count_by_merging():
    """Updates of about 1e-4 of the kernels: below what bfloat16 can add to them."""
    drift, half = from_linen(Guided()), cast(params_of(Guided(), COND), jnp.bfloat16)
    lora, _, params = adapted_and_away(Guided(), half)
    adapters = {name: factors._replace(b=1e-4 * factors.b) for name, factors in params.adapters.items()}
    exact = cast(half, jnp.float32)
    expected = drift(lora.merge(exact, adapters), T, X, COND) - drift(exact, T, X, COND)
    assert 1e-5 < np.abs(expected).max() < 1e-3
    shift = lora.by_merging(drift)(LoRAParams(half, adapters), T, X, COND) - drift(half, T, X, COND)
    np.testing.assert_allclose(shift, expected, atol=1e-6)
    exported = lora.merge(half, adapters)
    assert {leaf.dtype for leaf in jax.tree.leaves(exported)} == {jnp.dtype(jnp.bfloat16)}


def test_adapters_alone_are_refused():
    lora, student, params = adapted_and_away(Guided(), params_of(Guided(), COND))
    for drift in (student, lora.by_merging(from_linen(Guided()))):
        with pytest.raises(ValueError, match=r"adapters alone: give it LoRAParams\(base_params, adapters\)"):
            drift(params.adapters, T, X, COND)


def test_on_the_u_net_both_sides_are_the_merged_drift():
    module = gft.networks.UNet(
        channels=8, multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_heads=2, norm_groups=4
    )
    shapes = jax.eval_shape(lambda: gft.loading.init_params(module, jax.random.key(0), (8, 8, 2)))
    rng = np.random.default_rng(0)
    base = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, leaf.dtype), shapes)
    lora, student, params = adapted_and_away(module, base, parts={"*/qkv/kernel": 2})
    drift, x = from_linen(module), jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    assert lora.unused(student, base, T, x) == []

    @jax.jit
    def velocities(params):
        return student(params, T, x), drift(lora.merge(*params), T, x), drift(params.base, T, x)

    ours, merged, plain = velocities(params)
    size = np.abs(merged).max()
    assert np.abs(ours - merged).max() < 1e-5 * size
    assert np.abs(merged - plain).max() > 0.1 * size
