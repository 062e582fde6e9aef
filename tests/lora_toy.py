"""A small network of all that low-rank adaptation meets: dense layers, convolutions, fused products, and a loop."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import gft_jax as gft
from gft_jax.networks import lora

SHAPE = (4, 4, 2)
PARTS = {"*/qkv/kernel": 3}


class Block(nn.Module):
    """Convolution, then a product of three parts of a dense layer."""

    @nn.compact
    def __call__(self, h, embedding):
        h += nn.Conv(6, (3, 3), dtype=h.dtype, name="conv")(nn.silu(h))
        query, key, value = jnp.split(nn.Dense(18, dtype=h.dtype, name="qkv")(h + embedding), 3, axis=-1)
        return h + nn.Dense(6, dtype=h.dtype, name="proj")(jnp.tanh(query) * key + value)


class Net(nn.Module):
    """A velocity of images; ``scan`` and ``remat`` change how its two blocks run and not what they compute."""

    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, t, x, cond=None):
        block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        embedding = nn.Embed(5, 6, x.dtype, name="labels")(jnp.full(x.shape[:1], 4) if cond is None else cond)
        embedding = (embedding * jnp.sin(t.astype(x.dtype))[:, None])[:, None, None]
        h = nn.Conv(6, (3, 3), strides=(2, 2), dtype=x.dtype, name="first")(x)
        if self.scan:
            loop = nn.scan(
                lambda block, h, embedding: (block(h, embedding), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=2,
            )
            h = loop(block(name="blocks"), h, embedding)[0]
        else:
            for i in range(2):
                h = block(name=f"blocks_{i}")(h, embedding)
        h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        return nn.Dense(2, dtype=x.dtype, name="last")(h)


def base_of(module, seed=0):
    """Random parameters."""
    shapes = jax.eval_shape(lambda key: gft.loading.init_params(module, key, SHAPE), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), shapes)


def moved(adapters, size=0.3, seed=1):
    """Adapters away from their start, where B is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + size * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), adapters
    )


def adaptation(scan=False, **options):
    """All kernels but those of the first and the last layer."""
    stacked = ["blocks/*"] if scan else []
    return lora.low_rank(
        ["blocks*"], **{"rank": 2, "alpha": 3.0, "parts": PARTS, "stacked": stacked} | options
    )


def inputs(num_rows=3, dtype=jnp.float32):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(num_rows, *SHAPE)), dtype)
    return jnp.linspace(0.1, 0.9, num_rows), x, jnp.arange(num_rows) % 4
