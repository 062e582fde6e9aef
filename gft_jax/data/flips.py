"""Images mirrored at random: a row's own key decides, so that nothing else changes the draw."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

Augmentation = Callable[[Key[Array, ""], Array], Array]
"""Changes one row at random: ``(key, row [*event])`` -> a row of the same shape and dtype; a pure function."""


def horizontal_flip(probability: float = 0.5) -> Augmentation:
    """Left and right exchanged with a probability, for ``augment`` of `gft_jax.pairing.batches`.

    Only where a mirrored image is as good an example of its condition as the image itself: not for digits or text.

    Args:
        probability: in [0, 1].

    Returns:
        An augmentation of rows ``[height, width, channels]``; it raises ValueError for rows of another rank.

    Raises:
        ValueError: for a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of a flip is in [0, 1], got {probability}")
    # A pytree whose function is the same for all: streams share their programs.
    return jax.tree_util.Partial(_flip, jnp.asarray(probability, jnp.float32))


def _flip(probability: Array, key: Key[Array, ""], row: Array) -> Array:
    if row.ndim != 3:
        raise ValueError(
            f"images are flipped as rows [height, width, channels], got shape {row.shape}; a grey image has a last "
            "axis of length 1"
        )
    return jnp.where(jax.random.bernoulli(key, probability), row[:, ::-1], row)
