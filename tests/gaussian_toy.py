"""A toy for the tests of objectives: Gaussian laws, of which every drift is known, and an affine drift."""

import jax
import jax.numpy as jnp
import numpy as np

import gft_jax as gft
from gft_jax.gaussian import Gaussian
from gft_jax.pairing import row_keys

PATH = gft.paths.linear()
BASE_PARAMS = {"matrix": np.array([[0.3, -1.0], [0.2, 0.5]]), "offset": np.array([1.0, 2.0])}
PARAMS = {"matrix": BASE_PARAMS["matrix"] + 0.3, "offset": BASE_PARAMS["offset"] + 0.3}

gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
"""``(objective, params, base_params, batch, temperature)`` -> (gradient, stats)."""

mean_loss = jax.jit(gft.mean_loss, static_argnums=0)
"""``(objective, params, base_params, batch, temperature)`` -> (loss, stats), in one program."""


@jax.jit(static_argnums=0)
def prepare(objective, params, base_params, batch, temperature=0.0):
    """Rows of an objective without a state."""
    return objective.prepare(params, base_params, (), batch, jnp.asarray(temperature))


def laws():
    """Source, pretrained and target law, in the precision of the test."""
    precision = jnp.result_type(float)
    pairs = [
        ([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]),
        ([0.5, -0.5], [[1.2, 0.3], [0.3, 0.8]]),
        ([3.0, 1.0], [[0.4, -0.1], [-0.1, 0.6]]),
    ]
    return [Gaussian(jnp.asarray(mean, precision), jnp.asarray(cov, precision)) for mean, cov in pairs]


@jax.jit(static_argnums=0)
def batch_of(num_rows, cross=None, seed=0):
    """Rows of a Gaussian coupling of noise and target: independent, or the one of a map x1 = A x0 + b."""
    source, _, target = laws()
    key0, key1 = jax.random.split(jax.random.key(seed))
    x0 = gft.gaussian.sample(key0, source, num_rows)
    x1 = gft.gaussian.sample(key1, target, num_rows) if cross is None else x0 @ cross.T + target.mean
    return gft.Batch(x0, x1, row_keys(1, 0, num_rows))


def at_time(t):
    """A time sampler that always draws t."""
    return lambda key: jnp.full((), t)


def affine(params, t, x, cond=None):
    """The drift: an affine map of x, constant in time."""
    return x @ params["matrix"].T + params["offset"]


@jax.jit(static_argnums=0)
def affine_params_of(velocity, t):
    """Parameters of ``affine`` that equal a velocity which is affine in x at one time."""

    def at(x):
        return velocity(jnp.full((1,), t), x[None])[0]

    return {"matrix": jax.jacobian(at)(jnp.zeros(2)), "offset": at(jnp.zeros(2))}


def flat(tree):
    """All leaves in one vector."""
    return jax.flatten_util.ravel_pytree(tree)[0]


def z_scores(rows):
    """Means in standard errors; rounding, 1e-6, counts as one where nothing is random."""
    rows = np.asarray(rows)
    return np.abs(rows.mean(0)) / (rows.std(0, ddof=1) / np.sqrt(len(rows)) + 1e-6)
