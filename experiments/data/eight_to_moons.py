"""The eight gaussians and the two moons of torchcfm's tutorials: the field's usual test of couplings.

* source: equal mixture of eight normal laws with centres ``5 (cos(k pi/4), sin(k pi/4))``, k = 0 to 7, and *variance*
  sqrt(0.1) = 0.316 along each axis: what torchcfm (1.0.7, ``eight_normal_sample``) makes of ``var=0.1``, since it
  takes the root of the variance as the covariance.
* data: two half circles of radius 3, their angles on an even grid, moved along the diagonal by 0.6 times a uniform
  number: what torchdyn (1.0.6, ``generate_moons``) makes of ``noise=0.2``, since it adds one number to both
  coordinates.

`experiments.data.toy2d` has laws of the same names with other scales.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

RADIUS = 5.0
VARIANCE = 0.1**0.5


def eight_gaussians(keys: Key[Array, "rows"]) -> tuple[Array, None]:
    """Source rows ``[rows, 2]``, each from its own key, and no conditions: a source of `gft_jax.pairing.batches`."""

    def draw(key: Key[Array, ""]) -> Array:
        key_centre, key_normal = jax.random.split(key)
        angle = jax.random.randint(key_centre, (), 0, 8) * (jnp.pi / 4)
        centre = RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return centre + VARIANCE**0.5 * jax.random.normal(key_normal, (2,))

    return jax.vmap(draw)(keys), None


def moons(generator: np.random.Generator, num: int) -> np.ndarray:
    """Points of the two moons ``[num, 2]``, float32, in random order; num is even."""
    angle = np.linspace(0.0, np.pi, num // 2)
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inner = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    shifted = np.concatenate([outer, inner]) + generator.uniform(0.0, 0.2, (2 * len(angle), 1))
    return generator.permutation(3.0 * shifted - 1.0).astype(np.float32)
