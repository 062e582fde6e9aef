"""What the tests of MeanFlow share: rows of noise and data, and a drift whose average depends on everything."""

import jax
import jax.numpy as jnp
import numpy as np
from gaussian_toy import affine

import gft_jax as gft
from gft_jax.gaussian import Gaussian
from gft_jax.pairing import row_keys

PARAMS = {"matrix": np.array([[0.6, -0.7], [0.5, 0.8]]), "offset": np.array([1.3, 2.3])}
BASE = {"matrix": np.array([[0.3, -1.0], [0.2, 0.5]]), "offset": np.array([1.0, 2.0])}


def rows_of(law, num_rows, matrix=None):
    """Rows of noise and data: independent, or by a map ``x1 = matrix x0 + mean``."""
    key0, key1 = jax.random.split(jax.random.key(3))
    source = Gaussian(jnp.zeros(2), jnp.eye(2))
    x0 = gft.gaussian.sample(key0, source, num_rows)
    x1 = gft.gaussian.sample(key1, law, num_rows) if matrix is None else x0 @ matrix.T + law.mean
    return gft.Batch(x0, x1, row_keys(1, 0, num_rows))


def two_time_affine(params, t, s, x, cond=None):
    """Any drift whose average depends on everything."""
    return affine(params, t, x) * (1 + jnp.sin(s - t))[:, None] + jnp.cos(3 * t * s)[:, None]


def one_time_affine(params, t, x, cond=None):
    """The same at s = t."""
    return two_time_affine(params, t, t, x)
