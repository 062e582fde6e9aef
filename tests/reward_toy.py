"""A toy for the tests of reward fine-tuning: small networks, noise, and flows whose best control is known."""

import jax
import jax.numpy as jnp
import numpy as np

import gft_jax as gft
from gft_jax.pairing import row_keys

KAPPA, CENTRE, LAM = 2.0, 2.0, 0.5
"""Curvature and centre of the quadratic reward, and the weight of the cost."""


def network(params, t, x, cond=None):
    """A smooth velocity field on the plane, not affine in anything."""
    hidden = jnp.tanh(x @ params["first"] + t[:, None] * params["time"])
    return hidden @ params["last"] + (0.0 if cond is None else cond[:, None])


def random_params(seed, size):
    rng = np.random.default_rng(seed)
    shapes = {"first": (2, 5), "time": (5,), "last": (5, 2)}
    return {name: rng.normal(size=shape) * size for name, shape in shapes.items()}


BASE = random_params(0, 0.7)
AWAY = jax.tree.map(np.add, BASE, random_params(1, 0.2))


def wavy(x, cond=None):
    """A reward on the plane."""
    return jnp.sin(x[:, 0]) * x[:, 1] - 0.3 * jnp.sum(x**2, axis=1)


def noise(num_rows, dim=2, cond=None, seed=0):
    x0 = np.random.default_rng(seed).normal(size=(num_rows, dim))
    return gft.Batch(jnp.asarray(x0), None, row_keys(seed, 0, num_rows), cond)


def by_step(num_steps):
    """A drift on the line, affine in x with coefficients of its own at each step of a uniform grid."""

    def drift(params, t, x, cond=None):
        step = jnp.clip(jnp.round(t * num_steps).astype(int), 0, num_steps - 1)
        return params["slope"][step][:, None] * x + params["offset"][step][:, None]

    return drift


def normal_base(num_steps, spread):
    """Parameters of `by_step` for the flow from N(0, 1) to N(0, spread^2) along the linear path."""
    t = np.arange(num_steps) / num_steps
    slope = (t * spread**2 - (1 - t)) / ((t * spread) ** 2 + (1 - t) ** 2)
    return {"slope": slope, "offset": np.zeros(num_steps)}


def best_control(base, first=0, lam=LAM):
    """Parameters of `by_step` with the best control at the steps from ``first`` on, none before.

    With ``c_k = prod_{j >= k} (1 + h s_j)``, s the slopes of the base, the end is ``x_N = c_k x_k + sum_{j >= k} h
    c_{j+1} u_j``, and ``lam u_j = c_{j+1} kappa (m - x_N)`` gives ``u_k = c_{k+1} kappa (m - c_k x_k) / (lam + kappa
    G_k)``, ``G_k = sum_{j >= k} h c_{j+1}^2``.
    """
    slopes = base["slope"]
    h = 1 / len(slopes)
    carried = np.append(np.cumprod((1 + h * slopes)[::-1])[::-1], 1.0)
    gains = np.cumsum((h * carried[1:] ** 2)[::-1])[::-1]
    pull = carried[1:] * KAPPA / (lam + KAPPA * gains)
    trained = np.arange(len(slopes)) >= first
    return {
        "slope": slopes - trained * pull * carried[:-1],
        "offset": base["offset"] + trained * pull * CENTRE,
    }
