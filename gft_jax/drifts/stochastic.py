"""From a velocity to the drift of a stochastic process with the same marginals."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from gft_jax.couplings import Coupling, independent
from gft_jax.couplings.base import name_of
from gft_jax.diffusions import Diffusion
from gft_jax.drifts.base import evaluate
from gft_jax.paths import Path, score_from_velocity
from gft_jax.types import Drift


def as_score(drift: Drift, path: Path, *, coupling: Coupling | None) -> Drift:
    """The marginal score ``grad_x log p_t(x)`` of an affine path, from the velocity on it; in the form of a drift.

    ``score = (alpha v - alpha' x) / (sigma D)``, see `gft_jax.paths.score_from_velocity`. It holds for a source
    x0 ~ N(0, I) *independent* of the data: then ``score = -E[x0 | x_t] / sigma``, and the velocity determines
    ``E[x0 | x_t]``. Under an optimal-transport coupling x0 given x1 is not normal, the first equation fails, and the
    velocity says nothing of the score; train a score of its own there (on a path with noise, whose
    `gft_jax.paths.PathPoint` has a score to regress on). What cannot be checked here: that the source was N(0, I).

    Ends: singular where sigma = 0, at t = 1 of most paths; `gft_jax.sampling.sample_sde` does not evaluate it there.

    Args:
        drift: the velocity field, trained on ``path``.
        path: an affine path.
        coupling: what paired source and data in training: None (rows as drawn, the default of
            `gft_jax.pairing.batches`) or ``couplings.independent()``. All others are refused.

    Raises:
        ValueError: for a path without alpha and sigma, or a coupling of dependent ends.
    """
    if path.alpha is None or path.sigma is None:
        raise ValueError(
            "this path has no alpha and sigma (it is a bridge, or carries added noise), so its velocity does not "
            "determine its score. Train a score on the path's own (PathPoint.score)."
        )
    if coupling not in (None, independent()):
        raise ValueError(
            "the score follows from the velocity only where x0 is independent of x1, but the coupling is "
            f"{name_of(coupling)}: with dependent ends x0 given x1 is not N(0, I), and score = -E[x0 | x_t] / sigma "
            "fails. Train a score of its own on a noisy path, or sample by the ODE."
        )

    def score(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        return score_from_velocity(path, t, x, evaluate(drift, params, t, x, cond))

    return score


def as_sde_drift(drift: Drift, score: Drift, diffusion: Diffusion) -> Drift:
    """The drift ``b = v + (g(t)^2 / 2) score`` of the SDE ``dX = b dt + g(t) dW``, with the marginals of the ODE of v.

    Whatever g: the score term undoes the spreading by the noise (Fokker-Planck). With a score that is not that of
    v, the marginals are others, and depend on g.

    Args:
        drift: the velocity v.
        score: ``grad_x log p_t(x)``, a function of the same form and parameters.
        diffusion: the noise level g, see `gft_jax.diffusions`.

    Raises:
        ValueError: from the drift, if diffusion is no function or does not return one noise level a row.

    Source: Song et al., "Score-based generative modeling through stochastic differential equations",
    arXiv:2011.13456, appendix D; Albergo, Boffi, Vanden-Eijnden, "Stochastic interpolants", arXiv:2303.08797.
    """

    def sde_drift(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        velocity = evaluate(drift, params, t, x, cond)
        level = noise_level(diffusion, t)
        factor = (level**2 / 2).reshape(level.shape + (1,) * (x.ndim - 1)).astype(x.dtype)
        return velocity + factor * evaluate(score, params, t, x, cond)

    return sde_drift


def noise_level(diffusion: Diffusion, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """g(t) of a diffusion that a user has written.

    Raises:
        ValueError: if it is no function, or returns anything but one noise level for each time.
    """
    if not callable(diffusion):
        raise ValueError(
            f"diffusion must be a function of flow time, got {diffusion!r}: for a constant noise level give "
            "diffusions.constant(level)."
        )
    level = diffusion(t)
    if jnp.shape(level) != t.shape:
        raise ValueError(
            f"diffusion must return one noise level a row, shape {t.shape}, got {jnp.shape(level)}."
        )
    return level
