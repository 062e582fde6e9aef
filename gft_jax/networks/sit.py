"""The diffusion transformer SiT as a drift network, for images and latents."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from gft_jax.networks.condition_embedding import Sizes, check_condition_fields, with_condition
from gft_jax.networks.embeddings import sinusoids
from gft_jax.networks.second_time import with_second_time

TIME_FEATURES = 256
_LONGEST_PERIOD = 10_000.0
_FREQUENCIES = _LONGEST_PERIOD ** -(np.arange(TIME_FEATURES // 2) / (TIME_FEATURES // 2))
"""Angular frequencies of the features of t: from 1 down to nearly 1 / 10000."""

_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
PRESETS: dict[str, dict[str, Any]] = {
    f"{size}/{patch}": {"hidden_size": hidden, "depth": depth, "num_heads": heads, "patch_size": patch}
    for size, (hidden, depth, heads) in _SIZES.items()
    for patch in (2, 4, 8)
}
"""The published sizes: settings of `SiT` by name, such as "XL/2"."""

_xavier = nn.initializers.xavier_uniform()
_narrow = nn.initializers.normal(0.02)


def positions(rows: int, columns: int, hidden_size: int) -> np.ndarray:
    """Fixed sine-cosine positions ``[rows * columns, hidden_size]`` of the patches of an image, row by row.

    With the frequencies ``w_k = 10000^(-4 k / hidden_size)``, a quarter of the features each is
    ``sin(w_k column)``, ``cos(w_k column)``, ``sin(w_k row)`` and ``cos(w_k row)``, in float64.
    """
    quarter = hidden_size // 4
    frequencies = _LONGEST_PERIOD ** -(np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = [place[:, None] * frequencies for place in (column, row)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)


def _modulated(tokens: Array, shift: Array, scale: Array) -> Array:
    """Normalised tokens ``[batch, tokens, hidden]``, scaled and shifted by features ``[batch, hidden]``."""
    # Two-pass variance: the mean of squares less the square of the mean cancels where a token has an offset.
    norm = nn.LayerNorm(1e-6, tokens.dtype, use_bias=False, use_scale=False, use_fast_variance=False)
    return norm(tokens) * (1 + scale[:, None]) + shift[:, None]


class _Block(nn.Module):
    """Attention, then a two-layer perceptron, each modulated and gated by the embedding (adaLN-Zero)."""

    hidden_size: int
    num_heads: int
    mlp_ratio: int
    fused_attention: bool
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Array, embedding: Array) -> Array:
        def dense(features: int, name: str, kernel_init: Any = _xavier) -> nn.Dense:
            return nn.Dense(
                features,
                name=name,
                dtype=tokens.dtype,
                param_dtype=self.param_dtype,
                kernel_init=kernel_init,
            )

        width = self.hidden_size
        modulation = dense(6 * width, "adaLN_modulation", nn.initializers.zeros)(nn.silu(embedding))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

        # One product for queries, keys and values, in this order, each of all heads.
        qkv = dense(3 * width, "qkv")(_modulated(tokens, shift_a, scale_a))
        qkv = qkv.reshape(*tokens.shape[:2], 3, self.num_heads, width // self.num_heads)
        can_fuse = jax.default_backend() == "gpu" and tokens.dtype.itemsize == 2
        mixed = jax.nn.dot_product_attention(
            *(qkv[:, :, i] for i in range(3)),
            implementation="cudnn" if self.fused_attention and can_fuse else "xla",
        )
        tokens += gate_a[:, None] * dense(width, "proj")(mixed.reshape(tokens.shape))

        h = nn.gelu(dense(self.mlp_ratio * width, "fc1")(_modulated(tokens, shift_m, scale_m)))
        return tokens + gate_m[:, None] * dense(width, "fc2")(h)


class SiT(nn.Module):
    """Velocity network ``module(t, x, cond=None)``: a diffusion transformer on the patches of an image.

    x is ``[batch, height, width, channels]``, pixels or latents, whose sides are multiples of the patch. Patches are
    embedded linearly and get fixed sine-cosine positions; ``depth`` blocks of attention and perceptron are modulated by
    ``e = embedding of t + embedding of the condition`` (adaLN-Zero), and a modulated linear layer gives the patches
    of the velocity. The modulations and the last layer start at zero, and so does the velocity everywhere.

    With the parameters of the original in PyTorch (`gft_jax.interop`) the velocity is that of the original;
    the network of DiT is the same, but predicts noise and counts time in steps from data to noise.

    Computation runs in the dtype of x, whatever the dtype of the parameters; t is embedded in float32 at least, and so
    are the sums of norms and softmax. For bfloat16 with float32 parameters see `gft_jax.drifts.in_precision`.

    Source: Ma et al., arXiv:2401.08740 (SiT); Peebles and Xie, arXiv:2212.09748 (DiT, adaLN-Zero).

    Attributes:
        hidden_size: features of a token; a multiple of 4 and of ``num_heads``.
        depth: number of blocks, >= 1.
        num_heads: heads of attention, >= 1.
        patch_size: side of a patch in pixels, >= 1.
        mlp_ratio: features of the perceptrons' hidden layer, over ``hidden_size``; >= 1.
        num_classes: number K >= 1 of classes where the condition is a label: integers ``[batch]`` in 0 .. K - 1. The
            index K is the null class and means "no condition"; ``cond=None`` is the same as K in every row. Labels,
            vectors and several of them by name: see `ConditionEmbedding`.
        cond_features: width >= 1 of the condition where it is a vector, floats ``[batch, cond_features]``.
        learned_null: whether vectors have a learned null, which a row of NaN and ``cond=None`` stand for; without it
            they are obligatory.
        learn_sigma: whether the last layer has twice the channels, of which the second half is not part of the
            velocity: published weights have it.
        remat: whether the blocks are computed again in the backward pass, which then keeps one input of each block
            instead of all that is within it, for about a third more operations.
        scan: whether the blocks are one loop instead of a written-out sequence, which compiles in the time of one
            block; on CPU it also trains about twice as fast at a depth of 12, since XLA there computes the sum of all
            earlier blocks again wherever a written-out block is differentiated (jaxlib 0.10.2). The parameters are then
            stacked: ``params["blocks"]`` with a leading axis ``[depth, ...]`` in place of ``params["blocks_0"]``, ...;
            `gft_jax.networks.stacked` and `unstacked` convert. With parameters split over devices
            (`gft_jax.parallel.sharded`) the whole stack is gathered before the loop.
        fused_attention: whether attention is cuDNN's, which never writes out the weights ``[tokens, tokens]``, on
            NVIDIA GPUs where x is in half precision (`gft_jax.drifts.in_precision`); elsewhere nothing changes.
            It has no forward-mode derivative: for `gft_jax.objectives.mean_flow` see its ``tangent_drift``.
        two_times: whether the network takes a second time s, for average velocities; see `SecondTime`.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: at construction, if a field is out of range; at the call, if the shape of x is no image of whole
            patches, those of t, s or cond do not fit x, or cond or s is missing, unexpected or of another kind.
    """

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_ratio: int = 4
    num_classes: Sizes = None
    cond_features: Sizes = None
    learned_null: bool = False
    learn_sigma: bool = False
    remat: bool = False
    scan: bool = False
    fused_attention: bool = False
    two_times: bool = False
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        for name in ("hidden_size", "depth", "num_heads", "patch_size", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        check_condition_fields(self)
        if self.hidden_size % 4 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of 4 and of num_heads={self.num_heads}, got {self.hidden_size}."
            )
        super().__post_init__()

    @classmethod
    def preset(cls, name: str, **fields: Any) -> "SiT":
        """The network of a published size, S, B, L or XL with patches of 2, 4 or 8: ``SiT.preset("XL/2")``.

        Args:
            name: one of `PRESETS`.
            **fields: the other attributes; the published weights have ``num_classes=1000, learn_sigma=True``.

        Raises:
            ValueError: for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"{name!r} is not a size of SiT; there are {', '.join(PRESETS)}.")
        return cls(**PRESETS[name] | fields)

    @nn.compact
    def __call__(
        self,
        t: Num[Array, "..."],
        x: Float[Array, "batch *event"],
        cond: Any = None,
        s: Num[Array, "..."] | None = None,
    ) -> Float[Array, "batch *event"]:
        """Velocity ``[batch, height, width, channels]`` at flow times t ``[batch]`` and positions x, given cond; its
        mean from t to s if the network takes two times."""
        self._check(t, x)
        batch, height, width, channels = x.shape
        p = self.patch_size
        rows, columns = height // p, width // p

        def dense(features: int, name: str, kernel_init: Any) -> nn.Dense:
            return nn.Dense(
                features, name=name, dtype=x.dtype, param_dtype=self.param_dtype, kernel_init=kernel_init
            )

        patches = x.reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, rows * columns, p * p * channels)
        tokens = dense(self.hidden_size, "x_embedder", _xavier)(patches)
        tokens += jnp.asarray(positions(rows, columns, self.hidden_size), x.dtype)

        # Angles are taken in float32 at least: half precision would round t itself.
        features = sinusoids(t.astype(jnp.promote_types(x.dtype, jnp.float32)), _FREQUENCIES).astype(x.dtype)
        h = dense(self.hidden_size, "t_embedder_0", _narrow)(features)
        embedding = dense(self.hidden_size, "t_embedder_2", _narrow)(nn.silu(h))
        embedding = with_condition(
            self, embedding, cond, "y_embedder", embedding_init=_narrow, kernel_init=_narrow
        )
        embedding = with_second_time(self, embedding, t, s)

        tokens = self._blocks(tokens, embedding)
        zeros = nn.initializers.zeros
        modulation = dense(2 * self.hidden_size, "final_adaLN_modulation", zeros)(nn.silu(embedding))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        out_channels = 2 * channels if self.learn_sigma else channels
        patches = dense(p * p * out_channels, "final_linear", zeros)(_modulated(tokens, shift, scale))
        patches = patches.reshape(batch, rows, columns, p, p, out_channels)[..., :channels]
        return patches.swapaxes(2, 3).reshape(x.shape)

    def _blocks(self, tokens: Array, embedding: Array) -> Array:
        # In a loop nothing can be taken for a common subexpression, and the barrier against it would cost.
        block = nn.remat(_Block, prevent_cse=not self.scan) if self.remat else _Block
        fields = (
            self.hidden_size,
            self.num_heads,
            self.mlp_ratio,
            self.fused_attention,
            self.param_dtype,
        )
        if not self.scan:
            for i in range(self.depth):
                tokens = block(*fields, name=f"blocks_{i}")(tokens, embedding)
            return tokens
        loop = nn.scan(
            lambda block, tokens, embedding: (block(tokens, embedding), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # type: ignore[arg-type]
            length=self.depth,
        )
        return loop(block(*fields, name="blocks"), tokens, embedding)[0]

    def _check(self, t: Array, x: Array) -> None:
        p = self.patch_size
        if x.ndim != 4 or x.shape[1] % p or x.shape[2] % p or 0 in x.shape[1:]:
            raise ValueError(
                f"x must be images [batch, height, width, channels] whose sides are multiples of patch_size={p}, got "
                f"shape {x.shape}."
            )
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t must have shape {x.shape[:1]} for x of shape {x.shape}, got shape {t.shape}."
            )
