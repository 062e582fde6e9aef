"""Parameters, floating-point operations and activations of a diffusion transformer with adaLN blocks.

The blocks are those of DiT (Peebles and Xie, arXiv:2212.09748), which SiT (Ma et al., arXiv:2401.08740) takes over.
"""

from typing import NamedTuple

TIME_FEATURES = 256
"""Sinusoids of the flow time, as in DiT."""


class Transformer(NamedTuple):
    """Shape of a diffusion transformer on latent images."""

    name: str
    depth: int
    """Number of blocks."""
    width: int
    """Features of a token; divisible by ``heads``."""
    heads: int
    image: int
    """Side of the (latent) image in pixels; divisible by ``patch``."""
    patch: int = 2
    channels: int = 4
    out_channels: int = 4
    mlp_ratio: int = 4
    classes: int = 1000

    @property
    def tokens(self) -> int:
        """Number of patches of an image."""
        return (self.image // self.patch) ** 2

    @property
    def patch_features(self) -> int:
        """Features of a patch."""
        return self.patch**2 * self.channels


SIT_XL_2 = Transformer("SiT-XL/2", depth=28, width=1152, heads=16, image=32, out_channels=8)
"""SiT-XL/2 at 256 x 256 pixels: latents of 32 x 32 x 4. Its checkpoints have twice the output channels."""

SIT_4B_2 = Transformer("4 B", depth=34, width=2560, heads=20, image=64)
"""A model of 4 billion parameters, not a published one: 512 x 512 pixels, latents of 64 x 64 x 4, 1024 tokens."""


def check(shape: Transformer) -> None:
    """Raises ValueError for a shape that is no transformer."""
    for name, value in shape._asdict().items():
        if name != "name" and value < 1:
            raise ValueError(f"{name} of {shape.name} must be >= 1, got {value}")
    for whole, part in (("width", "heads"), ("image", "patch")):
        if getattr(shape, whole) % getattr(shape, part):
            raise ValueError(
                f"{whole} must be a multiple of {part}, got {getattr(shape, whole)} and {getattr(shape, part)}"
            )


def block_parameters(shape: Transformer) -> int:
    """Trained parameters of a block: weights ``(10 + 2 r) d^2`` and biases ``(11 + r) d``, MLP ratio r, width d."""
    d, r = shape.width, shape.mlp_ratio
    return (10 + 2 * r) * d**2 + (11 + r) * d


def parameters(shape: Transformer) -> int:
    """Trained parameters; the table of sinusoidal positions is a constant."""
    d, last = shape.width, shape.patch**2 * shape.out_channels
    patches = (shape.patch_features + 1) * d
    embedding = (TIME_FEATURES + 1) * d + (d + 1) * d + (shape.classes + 1) * d
    head = 2 * d * (d + 1) + (d + 1) * last
    return shape.depth * block_parameters(shape) + patches + embedding + head


def forward_flops(shape: Transformer) -> int:
    """Floating-point operations of the matrix products of an image's forward pass, two for each multiply-add.

    A block has ``(8 + 4 r) T d^2`` in products with weights, ``4 T^2 d`` in attention and ``12 d^2`` in adaLN, for T
    tokens. Norms, activations and softmax are left out.
    """
    d, r, tokens = shape.width, shape.mlp_ratio, shape.tokens
    block = (8 + 4 * r) * tokens * d**2 + 4 * tokens**2 * d + 12 * d**2
    ends = 2 * tokens * d * (shape.patch_features + shape.patch**2 * shape.out_channels)
    return shape.depth * block + ends + 2 * (TIME_FEATURES * d + d**2) + 4 * d**2


class Kept(NamedTuple):
    """What the forward pass leaves for the backward pass; the rest is computed again."""

    name: str
    policy: str | None
    """In ``jax.checkpoint_policies``; "" for none, None where nothing is computed again."""


ALL = Kept("all", None)
"""Everything that differentiation asks for."""
PRODUCTS = Kept("products", "dots_with_no_batch_dims_saveable")
"""The block's input and the outputs of its products with weights; norms, attention and activations come again."""
INPUTS = Kept("inputs", "")
"""The block's input; the whole block comes again."""


def kept_bytes(shape: Transformer, kept: Kept, itemsize: int = 2, fused_attention: bool = True) -> float:
    """Bytes a block keeps of an image for the backward pass.

    For each feature of a token, with MLP ratio r, `ALL` is ``10 + 6 r`` numbers in the dtype of the computation (6 r
    of them around JAX's GELU by tanh) and 4 of the norms in float32. Attention that is not fused adds its weights for
    all tokens, in float32 and in the dtype; a fused one adds a float32 for each head. `PRODUCTS` is ``6 + r``, and
    adaLN's 6 of an image; `INPUTS` is 1. `ALL` is what ``jax.grad`` asks to keep, which a compiler may lessen.

    Args:
        shape: the transformer.
        kept: what is kept.
        itemsize: bytes of a number of the computation, 2 or 4.
        fused_attention: whether attention's weights are never written out.
    """
    if kept == INPUTS:
        per_token = itemsize * shape.width
    elif kept == PRODUCTS:
        per_token = itemsize * ((6 + shape.mlp_ratio) + 6 / shape.tokens) * shape.width
    else:
        weights = 4 if fused_attention else (4 + itemsize) * shape.tokens
        per_token = (itemsize * (10 + 6 * shape.mlp_ratio) + 16) * shape.width + weights * shape.heads
    return per_token * shape.tokens
