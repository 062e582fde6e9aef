"""The transformer of the study in Flax, to check the formulas by: layers written out, blocks with adaLN."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

from experiments.scaling.transformer import TIME_FEATURES, Transformer


class Block(nn.Module):
    """Attention and MLP, each between a shift and scale of its normalised input and a gate of its output."""

    shape: Transformer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Array, embedding: Array) -> Array:
        """Tokens ``[batch, tokens, width]`` given the embedding ``[batch, width]`` of time and class."""
        shape = self.shape
        modulation = nn.Dense(6 * shape.width, dtype=self.dtype, name="modulation")(nn.silu(embedding))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation[:, None], 6, axis=-1)
        qkv = nn.Dense(3 * shape.width, dtype=self.dtype, name="qkv")(self._norm(h, shift_1, scale_1))
        heads = qkv.reshape(*h.shape[:-1], 3, shape.heads, shape.width // shape.heads)
        attended = jax.nn.dot_product_attention(*jnp.moveaxis(heads, -3, 0)).reshape(h.shape)
        h += gate_1 * nn.Dense(shape.width, dtype=self.dtype, name="projection")(attended)
        inner = nn.Dense(shape.mlp_ratio * shape.width, dtype=self.dtype, name="expand")(
            self._norm(h, shift_2, scale_2)
        )
        return h + gate_2 * nn.Dense(shape.width, dtype=self.dtype, name="contract")(nn.gelu(inner))

    def _norm(self, h: Array, shift: Array, scale: Array) -> Array:
        return nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h) * (1 + scale) + shift


class Network(nn.Module):
    """Velocity network ``module(t, x, cond)`` of a `Transformer`: x ``[batch, side, side, channels]``, labels cond.

    Parameters are float32; computation runs in ``dtype``. With ``remat`` each block keeps its input alone and is
    computed again in the backward pass.
    """

    shape: Transformer
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, t: Array, x: Array, cond: Any = None) -> Array:
        """Velocity at flow times t ``[batch]``."""
        shape, batch = self.shape, x.shape[0]
        patch, side = shape.patch, x.shape[1] // shape.patch
        patches = (
            x.reshape(batch, side, patch, side, patch, -1).swapaxes(2, 3).reshape(batch, shape.tokens, -1)
        )
        place = jnp.linspace(0.0, 1.0, shape.tokens)[:, None] * jnp.arange(1.0, shape.width + 1)
        h = nn.Dense(shape.width, dtype=self.dtype, name="patches")(patches) + jnp.sin(place).astype(
            self.dtype
        )
        angles = t[:, None] * jnp.geomspace(1.0, 50.0, TIME_FEATURES // 2)
        sinusoids = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        time = nn.Dense(shape.width, dtype=self.dtype, name="time_in")(sinusoids)
        embedding = nn.Dense(shape.width, dtype=self.dtype, name="time_out")(nn.silu(time))
        labels = jnp.full(batch, shape.classes) if cond is None else cond
        embedding += nn.Embed(shape.classes + 1, shape.width, dtype=self.dtype, name="classes")(labels)
        block = nn.remat(Block) if self.remat else Block
        for i in range(shape.depth):
            h = block(shape, self.dtype, name=f"block_{i}")(h, embedding)
        modulation = nn.Dense(2 * shape.width, dtype=self.dtype, name="last_modulation")(nn.silu(embedding))
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h) * (1 + scale) + shift
        out = nn.Dense(patch**2 * shape.out_channels, dtype=self.dtype, name="last")(h)
        image = out.reshape(batch, side, side, patch, patch, -1).swapaxes(2, 3)
        return image.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]].astype(x.dtype)
