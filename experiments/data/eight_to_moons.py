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
from jaxtyping import Array, Int, Key

NUM_MODES = 8
RADIUS = 5.0
VARIANCE = 0.1**0.5


def centres(modes: Int[Array, "rows"]) -> Array:
    """Centres ``[rows, 2]`` of the gaussians with the numbers ``modes``, 0 to 7."""
    angle = modes * (jnp.pi / 4)
    return RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def eight_gaussians_and_modes(keys: Key[Array, "rows"]) -> tuple[Array, Int[Array, "rows"]]:
    """Source rows ``[rows, 2]``, each from its own key, and which gaussian each is of, as the ``source_cond`` of
    `gft_jax.pairing.batches`."""
    key_mode, key_normal = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    modes = jax.vmap(lambda key: jax.random.randint(key, (), 0, NUM_MODES))(key_mode)
    normal = jax.vmap(lambda key: jax.random.normal(key, (2,)))(key_normal)
    return centres(modes) + VARIANCE**0.5 * normal, modes


def eight_gaussians(keys: Key[Array, "rows"]) -> tuple[Array, None]:
    """Source rows ``[rows, 2]``, each from its own key, and no conditions: a source of `gft_jax.pairing.batches`."""
    return eight_gaussians_and_modes(keys)[0], None


def labelled_moons(generator: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the two moons ``[num, 2]``, float32, in random order, and of which moon each is, 0 for the outer and 1
    for the inner one ``[num]``, half of the points each; num is even."""
    angle = np.linspace(0.0, np.pi, num // 2)
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inner = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    shifted = np.concatenate([outer, inner]) + generator.uniform(0.0, 0.2, (2 * len(angle), 1))
    order = generator.permutation(2 * len(angle))
    return (3.0 * shifted - 1.0)[order].astype(np.float32), (order >= len(angle)).astype(np.int32)


def moons(generator: np.random.Generator, num: int) -> np.ndarray:
    """Points of the two moons ``[num, 2]``, float32, in random order; num is even."""
    return labelled_moons(generator, num)[0]
