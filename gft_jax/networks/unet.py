"""A U-Net as a drift network, for images and latents."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from gft_jax.networks.condition_embedding import Sizes, check_condition_fields, with_condition
from gft_jax.networks.convolution import conv_general_dilated
from gft_jax.networks.embeddings import check_max_frequency, flow_time_frequencies, sinusoids
from gft_jax.networks.second_time import with_second_time

_INTEGERS = ("channels", "num_res_blocks", "num_heads", "norm_groups")


class UNet(nn.Module):
    """Velocity network ``module(t, x, cond=None)`` of convolutions at several resolutions, for ``[height, width, c]``.

    A level is ``num_res_blocks`` residual blocks; between levels height and width are halved by a convolution of
    stride 2. On the way up each level has one block more, and each block also reads what one layer of the way down
    left at its resolution; between levels pixels are doubled and convolved. A residual block is

        ``h + W2 silu(norm(W1 silu(norm(h)) + A e))``,  ``e = silu(embedding of t + embedding of the condition)``,

    W1 and W2 convolutions of 3 x 3 and norm a group normalisation; with ``scale_shift`` the second half is
    ``W2 silu((1 + scale) norm(.) + shift)``, ``(scale, shift) = A e``. Self-attention between pixels follows the
    blocks at the given resolutions, and stands between the two blocks at the bottom.

    The defaults are the U-Net that published flow matching on small images uses (CIFAR-10: 128 channels, multipliers
    1-2-2-2, two blocks, four heads at 16 x 16; 35,746,307 parameters), without its dropout of 0.1: a drift is
    a pure function of its arguments. W2, the attention's last layer and the last convolution start at zero, so the
    initial drift is zero everywhere.

    Convolutions have a gradient of their own on CPU, `gft_jax.networks.convolution`, so that training is as fast in a
    loop (``runner.step_many``, rollouts, accumulation) as outside. Computation runs in the dtype of x, whatever the
    dtype of the parameters; means, variances and softmax in float32 at least.

    Attributes:
        channels: width of the first level, >= 1.
        multipliers: width of each level in units of ``channels``, each >= 1; height and width of the images must be
            multiples of ``2 ** (len(multipliers) - 1)``.
        num_res_blocks: residual blocks of a level on the way down, >= 1.
        attention_resolutions: where attention follows the blocks: the shorter side of a level, in pixels. Images
            none of whose levels has one of these sides are refused; ``()`` leaves the attention at the bottom alone.
        num_heads: heads of the attention, >= 1, a divisor of the width of every level.
        norm_groups: groups of the group normalisation, >= 1, a divisor of ``channels``.
        scale_shift: whether the embedding scales and shifts instead of being added.
        num_classes: number K >= 1 of classes where the condition is a label: integers ``[batch]`` in 0 .. K - 1. The
            index K is the null class and means "no condition"; ``cond=None`` is the same as K in every row. Labels,
            vectors and several of them by name: see `ConditionEmbedding`.
        cond_features: width >= 1 of the condition where it is a vector, floats ``[batch, cond_features]``.
        learned_null: whether vectors have a learned null, which a row of NaN and ``cond=None`` stand for; without it
            they are obligatory.
        two_times: whether the network takes a second time s, for average velocities; see `SecondTime`.
        max_frequency: largest angular frequency of the sinusoids of t, >= 1, in radians per unit of flow time; for a
            network that is to become an average velocity 8 or less, see `SecondTime`.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: at construction, if a field is out of range; at the call, if x is no batch of images of a fitting
            size, the shape of t does not fit x, or cond or s is missing, unexpected, or of another kind or shape.

    Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", arXiv:2105.05233 (the network); Tong
    et al., arXiv:2302.00482 (its use for flow matching).
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    num_heads: int = 4
    norm_groups: int = 32
    scale_shift: bool = False
    num_classes: Sizes = None
    cond_features: Sizes = None
    learned_null: bool = False
    two_times: bool = False
    max_frequency: float = 50.0
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        for name in _INTEGERS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        check_condition_fields(self)
        check_max_frequency(self.max_frequency)
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one or more integers >= 1, got {self.multipliers}.")
        if any(side < 1 for side in self.attention_resolutions):
            raise ValueError(f"attention_resolutions must be >= 1, got {self.attention_resolutions}.")
        if self.channels % self.norm_groups:
            raise ValueError(
                f"norm_groups={self.norm_groups} does not divide channels={self.channels}; give a divisor of it."
            )
        for multiplier in self.multipliers:
            if self.channels * multiplier % self.num_heads:
                raise ValueError(
                    f"num_heads={self.num_heads} does not divide the width {self.channels * multiplier} of a level; "
                    "give a divisor of channels."
                )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        t: Num[Array, "..."],
        x: Float[Array, "batch *event"],
        cond: Any = None,
        s: Num[Array, "..."] | None = None,
    ) -> Float[Array, "batch *event"]:
        """Velocity ``[batch, height, width, c]`` at flow times t ``[batch]`` and positions x, given cond; its mean from
        t to s if the network takes two times."""
        attends = self._levels_with_attention(x)
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t must have shape {x.shape[:1]} for x of shape {x.shape}, got shape {t.shape}."
            )
        embedding = nn.silu(self._embedding(t, x, cond, s))
        widths = [self.channels * multiplier for multiplier in self.multipliers]

        def block(h: Array, level: int, name: str) -> Array:
            h = _Residual(widths[level], self.norm_groups, self.scale_shift, self.param_dtype, name=name)(
                h, embedding
            )
            return attention(h, f"{name}_attention") if attends[level] else h

        def attention(h: Array, name: str) -> Array:
            return _Attention(self.num_heads, self.norm_groups, self.param_dtype, name=name)(h)

        h = _convolution(x, widths[0], self.param_dtype, "first")
        left = [h]
        for level in range(len(widths)):
            if level:
                h = _convolution(h, widths[level - 1], self.param_dtype, f"down_{level}", stride=2)
                left.append(h)
            for i in range(self.num_res_blocks):
                h = block(h, level, f"down_{level}_{i}")
                left.append(h)

        def middle(h: Array, name: str) -> Array:
            return _Residual(widths[-1], self.norm_groups, self.scale_shift, self.param_dtype, name=name)(
                h, embedding
            )

        h = middle(attention(middle(h, "middle_0"), "middle_attention"), "middle_1")
        for level in reversed(range(len(widths))):
            for i in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, left.pop()], axis=-1), level, f"up_{level}_{i}")
            if level:
                doubled = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = _convolution(doubled, widths[level], self.param_dtype, f"up_{level}")
        h = nn.silu(_norm(h, self.norm_groups, self.param_dtype, "last_norm"))
        return _convolution(h, x.shape[-1], self.param_dtype, "last", zero=True)

    def _levels_with_attention(self, x: Array) -> list[bool]:
        """Whether each level has one of the sides at which attention is asked for."""
        unit = 2 ** (len(self.multipliers) - 1)
        if x.ndim != 4 or x.shape[1] % unit or x.shape[2] % unit:
            raise ValueError(
                f"x must be images [batch, height, width, channels] whose height and width are multiples of {unit}, "
                f"for the {len(self.multipliers)} levels of multipliers={tuple(self.multipliers)}; got shape {x.shape}."
            )
        sides = [min(x.shape[1:3]) // 2**level for level in range(len(self.multipliers))]
        attends = [side in self.attention_resolutions for side in sides]
        if self.attention_resolutions and not any(attends):
            raise ValueError(
                f"attention_resolutions={tuple(self.attention_resolutions)} holds none of the sides {sides} that the "
                f"levels have for x of shape {x.shape}; give one or more of these, or () for no attention there."
            )
        return attends

    def _embedding(self, t: Array, x: Array, cond: Any, s: Array | None) -> Array:
        """Embedding of times and condition ``[batch, 4 channels]``."""
        width = 4 * self.channels

        def dense(name: str) -> nn.Dense:
            return nn.Dense(width, name=name, dtype=x.dtype, param_dtype=self.param_dtype)

        # Angles are taken in float32 at least: half precision would round t itself.
        features = sinusoids(
            t.astype(jnp.promote_types(x.dtype, jnp.float32)),
            flow_time_frequencies(self.channels + self.channels % 2, self.max_frequency),
        )
        embedding = dense("time_1")(nn.silu(dense("time_0")(features.astype(x.dtype))))
        embedding = with_condition(self, embedding, cond, "condition")
        return with_second_time(self, embedding, t, s)


class _Residual(nn.Module):
    """A residual block; see `UNet`."""

    width: int
    norm_groups: int
    scale_shift: bool
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Array, embedding: Array) -> Array:
        inner = nn.silu(_norm(h, self.norm_groups, self.param_dtype, "norm_0"))
        inner = _convolution(inner, self.width, self.param_dtype, "conv_0")
        features = 2 * self.width if self.scale_shift else self.width
        modulation = nn.Dense(features, dtype=h.dtype, param_dtype=self.param_dtype, name="embedding")(
            embedding
        )[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            inner = (1 + scale) * _norm(inner, self.norm_groups, self.param_dtype, "norm_1") + shift
        else:
            inner = _norm(inner + modulation, self.norm_groups, self.param_dtype, "norm_1")
        inner = _convolution(nn.silu(inner), self.width, self.param_dtype, "conv_1", zero=True)
        if h.shape[-1] != self.width:
            h = nn.Dense(self.width, dtype=h.dtype, param_dtype=self.param_dtype, name="skip")(h)
        return h + inner


class _Attention(nn.Module):
    """Self-attention between the pixels of an image, added to its input."""

    num_heads: int
    norm_groups: int
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Array) -> Array:
        batch, height, width, channels = h.shape
        num_pixels, features = height * width, channels // self.num_heads
        pixels = _norm(h, self.norm_groups, self.param_dtype, "norm").reshape(batch, num_pixels, channels)
        qkv = nn.Dense(3 * channels, dtype=h.dtype, param_dtype=self.param_dtype, name="qkv")(pixels)
        # Channels are heads first, then query, key and value, as in the published checkpoints.
        qkv = qkv.reshape(batch, num_pixels, self.num_heads, 3, features)
        query, key, value = jnp.moveaxis(qkv, (3, 2), (0, 2))  # each [batch, heads, pixels, features]
        mixed = jnp.moveaxis(_attended(query, key, value), 1, 2).reshape(pixels.shape)
        zeros = nn.initializers.zeros
        out = nn.Dense(channels, dtype=h.dtype, param_dtype=self.param_dtype, kernel_init=zeros, name="out")(
            mixed
        )
        return h + out.reshape(h.shape)


def _attended(query: Array, key: Array, value: Array) -> Array:
    """``softmax(query key^T / sqrt(features)) value`` for ``[batch, heads, pixels, features]``, softmax in float32.

    As `jax.nn.dot_product_attention`, which takes twice as long on CPU with heads this narrow: products of plain
    matrices, and a division of the few features instead of the many weights.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scaled = query * query.shape[-1] ** -0.5
    logits = jnp.matmul(scaled, jnp.swapaxes(key, -1, -2), preferred_element_type=dtype)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    mixed = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=dtype)
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)


def _norm(h: Array, groups: int, param_dtype: DTypeLike, name: str) -> Array:
    """Group normalisation with a learnt scale and shift of each channel."""
    # Two-pass variance: the mean of squares less the square of the mean cancels where a group has an offset.
    return nn.GroupNorm(
        groups, epsilon=1e-5, dtype=h.dtype, param_dtype=param_dtype, use_fast_variance=False, name=name
    )(h)


def _convolution(
    h: Array, features: int, param_dtype: DTypeLike, name: str, *, stride: int = 1, zero: bool = False
) -> Array:
    """Convolution of 3 x 3 with a border of zeros of one pixel."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(
        features,
        (3, 3),
        stride,
        padding=1,
        conv_general_dilated=conv_general_dilated,
        dtype=h.dtype,
        param_dtype=param_dtype,
        kernel_init=init,
        name=name,
    )(h)
