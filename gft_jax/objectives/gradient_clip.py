"""Clipping of reward gradients at a running quantile of their norms."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class QuantileClip(NamedTuple):
    """Scales down the gradients of the rows whose norm is above a running quantile of all norms.

    The quantile q is found by stochastic approximation of its logarithm, ``log q <- log q + rate (level - share)``,
    share the part of the rows whose norm is at most q. A step raises q by a factor of ``exp(rate level)`` at most, and
    lowers it by ``exp(-rate (1 - level))`` at most: by default 1.20, and 0.98, since q is high among the norms and
    seldom passed. It starts at the geometric mean of the norms of the first batch, zeros left out, which a few large
    ones hardly move; the first batch is not clipped. Only means over rows enter, so that it is the same for any spread
    of the rows over devices.

    Source: the library's own combination; the approximation is that of Robbins and Monro, "A stochastic approximation
    method", Ann. Math. Statist. 22 (1951).
    """

    level: float = 0.9
    """The quantile, in (0, 1)."""
    rate: float = 0.2
    """Speed of the logarithm of q, > 0: see above for how far a step may move q."""

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

    def update(
        self, threshold: Float[Array, ""], log_norm: Any, zero_share: Any, share_below: Any
    ) -> Float[Array, ""]:
        """The threshold after a batch, from means over its rows.

        Args:
            threshold: before; zero where nothing is known.
            log_norm: of the logarithms of the norms, 0 in place of that of zero.
            zero_share: of the rows whose norm is zero; where all are, nothing is known after it either.
            share_below: of the rows at or below the threshold.
        """
        moved = threshold * jnp.exp(self.rate * (self.level - share_below))
        start = jnp.where(zero_share < 1, jnp.exp(log_norm / jnp.where(zero_share < 1, 1 - zero_share, 1)), 0)
        return jnp.where(threshold > 0, moved, start).astype(jnp.float32)
