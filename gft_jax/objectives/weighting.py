"""Weights of the squared error by flow time, ``k(t)``."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gft_jax.diffusions import Diffusion, eta
from gft_jax.paths import Path
from gft_jax.types import Weighting


def uniform(t: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """``k(t) = 1``: the plain flow matching loss."""
    return jnp.ones_like(t)


def bridge(diffusion: float | int) -> Weighting:
    """``l(t) = g^2 t (1 - t)``, the variance of the noise of `gft_jax.paths.brownian_bridge`: for its score.

    The weighted squared error is that of predicting the noise: of order one at all times, though the score is infinite
    at both ends.

    Raises:
        ValueError: for a diffusion that is not positive.
    """
    if not diffusion > 0:
        raise ValueError(f"diffusion is {diffusion}; it must be > 0, the noise level of the bridge")
    return lambda t: diffusion**2 * t * (1 - t)


def girsanov(path: Path, diffusion: Diffusion, *, max_weight: float) -> Weighting:
    """The weight under which the squared velocity error is a relative entropy of path measures.

    By Girsanov's theorem two processes with the same start and the same diffusion ``g`` and with SDE drifts
    ``b``, ``b'`` differ by ``KL = E int |b - b'|^2 / (2 g^2) dt``. On an affine path with an independent
    Gaussian source, the SDE drift of a velocity error ``e`` is ``(1 + g^2 / (2 eta)) e``, hence

        k(t) = (1 + g(t)^2 / (2 eta(t)))^2 / (2 g(t)^2),     eta = sigma (sigma alpha'/alpha - sigma').

    For the memoryless diffusion, ``g^2 = 2 eta``, this is ``1 / eta`` (linear path: ``t / (1 - t)``). The weight
    grows without bound towards t = 1, where the conditional loss keeps a variance, so that it is capped.

    Args:
        path: affine path with an independent Gaussian source.
        diffusion: noise level g(t), positive inside (0, 1).
        max_weight: positive cap of k(t).

    Raises:
        ValueError: if ``max_weight`` is not positive, or the path has no coefficients (bridges).
    """
    if not max_weight > 0.0:
        raise ValueError(f"max_weight is the cap of the Girsanov weight and must be > 0, got {max_weight}")
    if path.alpha is None or path.sigma is None:
        raise ValueError(
            "the Girsanov weight needs the coefficients alpha(t) and sigma(t) of an affine path; "
            "a bridge or a path with added noise has none. Use weighting.uniform."
        )

    def weight(t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        # Computed from 1/g^2 and 1/eta, so that an infinite g at t = 0 gives the limit and not inf/inf.
        inverse_variance = 1.0 / diffusion(t) ** 2
        inverse_eta = 1.0 / eta(path, t)
        root = inverse_variance + 0.5 * inverse_eta
        value = jnp.where(inverse_variance > 0.0, root**2 / (2.0 * inverse_variance), 0.0)
        return jnp.clip(jnp.nan_to_num(value, nan=max_weight, posinf=max_weight), 0.0, max_weight)

    return weight
