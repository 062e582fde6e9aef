"""The small network of torchcfm's tutorials in Flax, and the data that they train it on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from sklearn.datasets import make_moons


class PlainMLP(linen.Module):
    """Three hidden layers, by default of SELU, on position and time: ``module(t, x)`` for events of one axis."""

    width: int
    activation: Callable[[jax.Array], jax.Array] = linen.selu

    @linen.compact
    def __call__(self, t: jax.Array, x: jax.Array, cond: None = None) -> jax.Array:
        """Velocity ``[batch, dim]`` at times t ``[batch]`` and positions x."""
        h = jnp.concatenate([x, t[:, None]], axis=-1)
        for number in range(3):
            h = self.activation(linen.Dense(self.width, name=f"layer_{number}")(h))
        return linen.Dense(x.shape[-1], name="layer_3")(h)


def selu_by_tanh(x: jax.Array) -> jax.Array:
    """SELU with ``exp(x) - 1 = 2 h / (1 - h)``, ``h = tanh(x / 2)``: as exact as ``expm1``, by which Flax takes it.

    XLA's ``expm1`` on a CPU takes more than twice as long as its ``tanh``.
    """
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    half = jnp.tanh(jnp.minimum(x, 0) / 2)
    return scale * jnp.where(x > 0, x, alpha * 2 * half / (1 - half))


def moons() -> np.ndarray:
    """Rows of two half-moons ``[8192, 2]``, float32."""
    return np.asarray(make_moons(8192, noise=0.05, random_state=0)[0], np.float32)
