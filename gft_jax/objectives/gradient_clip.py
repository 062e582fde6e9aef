"""Clipping of reward gradients at a running quantile of their norms."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class QuantileClip(NamedTuple):
    """Scales down the gradients of the rows whose norm is above a running quantile of all norms.

    The quantile q is found by stochastic approximation of its logarithm, ``log q <- log q + rate (level - share)``,
    share the part of the rows whose norm is at most q. It starts at the mean norm of the first batch, which is not
    clipped. Only means over rows enter, so that it is the same for any spread of the rows over devices.
    """

    level: float = 0.9
    """The quantile, in (0, 1)."""
    rate: float = 0.2
    """Speed of the logarithm of q, > 0: after n steps q may have moved by a factor of ``exp(rate n)`` at most."""

    def check(self) -> None:
        """Refuses numbers out of range.

        Raises:
            ValueError: naming the number and its range.
        """
        if not 0 < self.level < 1:
            raise ValueError(f"level is a quantile in (0, 1), got {self.level}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be positive and finite, got {self.rate}")

    def clip(
        self, threshold: Float[Array, ""], gradient: Float[Array, "rows *event"], norm: Float[Array, "rows"]
    ) -> Float[Array, "rows *event"]:
        """The gradients, those above the threshold scaled to it; a threshold of zero leaves all as they are."""
        factor = jnp.where((threshold > 0) & (norm > threshold), threshold / jnp.where(norm > 0, norm, 1), 1)
        return gradient * factor.reshape(factor.shape + (1,) * (gradient.ndim - 1)).astype(gradient.dtype)

    def update(self, threshold: Float[Array, ""], mean_norm: Any, share_below: Any) -> Float[Array, ""]:
        """The threshold after a batch, from the mean norm and the share of rows at or below the threshold."""
        moved = threshold * jnp.exp(self.rate * (self.level - share_below))
        return jnp.where(threshold > 0, moved, mean_norm).astype(jnp.float32)
