"""Noise levels g(t) by flow time: the diffusion of the SDEs that share the marginals of a probability path."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from gft_jax.paths import Path, coefficients

Diffusion = Callable[[Array], Array]
"""A noise level by flow time: t ``[batch]`` -> g(t) ``[batch]``, not negative, per square root of flow time."""


def constant(level: float | int) -> Diffusion:
    """The same noise level at all times, ``g(t) = level``; 0 makes the SDE the probability-flow ODE.

    Raises:
        ValueError: for a level that is negative or not finite.
    """
    if not 0 <= level < math.inf:
        raise ValueError(
            f"the noise level is {level}; it must lie in [0, inf). Give the standard deviation g."
        )
    return lambda t: jnp.full_like(t, level)


def memoryless(path: Path) -> Diffusion:
    """The noise level ``g(t) = sqrt(2 eta(t))`` under which the ends of the generative SDE are independent.

    For an affine path with x0 ~ N(0, I) independent of x1, the SDE with drift ``v + (g^2 / 2) score`` and this g
    forgets its start, wholly where alpha(0) = 0 and nearly so on the variance-preserving path. Linear path:
    ``g^2 = 2 (1 - t) / t``.

    Ends: g is infinite where alpha = 0, at t = 0 of the linear and trigonometric paths, so start at a t > 0; it is
    0 where sigma = 0, at t = 1 of the same paths (not with a floor), where its derivative is infinite. The
    variance-preserving path is finite at t = 0 and NaN at t = 1.

    Source: Domingo-Enrich, Drozdzal, Karrer, Chen, "Adjoint Matching", arXiv:2409.08861.

    Raises:
        ValueError: for a path without alpha and sigma.
    """
    if path.alpha is None or path.sigma is None:
        raise ValueError(
            "this path has no alpha and sigma (it is a bridge, or carries added noise), so it has no memoryless "
            "noise level. Give linear(), trigonometric(), variance_preserving() or affine(alpha, sigma)."
        )
    return lambda t: jnp.sqrt(2 * eta(path, t))


def eta(path: Path, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The weight of the score in the marginal velocity, ``eta = sigma (sigma alpha'/alpha - sigma')``, like t.

    From ``v = (alpha'/alpha) x + eta score``, for x0 ~ N(0, I) independent of x1. Linear path: ``(1 - t) / t``.
    Ends: infinite where alpha = 0 and 0 where sigma = 0, but NaN at t = 1 of the variance-preserving path, where
    sigma' is infinite and eta tends to beta_min / 2.

    Raises:
        ValueError: for a path without alpha and sigma.
    """
    alpha, sigma, alpha_dot, sigma_dot = coefficients(path, t)
    return sigma * (alpha_dot * sigma - alpha * sigma_dot) / alpha
