"""The small network of torchcfm's tutorials in Flax, and the data that they train it on."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from sklearn.datasets import make_moons


class PlainMLP(linen.Module):
    """Three hidden layers of SELU on position and time: ``module(t, x)`` for events of one axis."""

    width: int

    @linen.compact
    def __call__(self, t: jax.Array, x: jax.Array, cond: None = None) -> jax.Array:
        """Velocity ``[batch, dim]`` at times t ``[batch]`` and positions x."""
        h = jnp.concatenate([x, t[:, None]], axis=-1)
        for number in range(3):
            h = linen.selu(linen.Dense(self.width, name=f"layer_{number}")(h))
        return linen.Dense(x.shape[-1], name="layer_3")(h)


def moons() -> np.ndarray:
    """Rows of two half-moons ``[8192, 2]``, float32."""
    return np.asarray(make_moons(8192, noise=0.05, random_state=0)[0], np.float32)
