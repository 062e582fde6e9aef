"""Probability paths: the position x_t and its velocity given the two ends, and what velocity says of score,
noise and data.

A path is a value made by a factory: ``linear()``, ``trigonometric()``, ``variance_preserving()``,
``tabulated(alphas_cumprod)``, any other ``affine(alpha, sigma)``, and the noisy ones
``with_constant_noise(path, noise)`` and ``brownian_bridge(g)``.
Flow time t = 0 is the source (noise) x0, t = 1 is data x1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

Times = Float[Array, "batch"]
"""Flow times, one per row."""

Events = Float[Array, "batch *event"]
"""Rows of events of any rank, also rank zero."""


class PathPoint(NamedTuple):
    """A position on a path with the time derivative and the score that go with it."""

    x: Array
    """Position x_t ``[batch, *event]``."""
    velocity: Array
    """Conditional velocity d x_t / dt ``[batch, *event]``, the noise held fixed."""
    score: Array | None
    """``grad_x log p_t(x | x0, x1)`` ``[batch, *event]``; None where x_t is a function of the ends alone, so
    that the conditional law has no density."""


class Path(NamedTuple):
    """Law of x_t given the two ends, as pure functions of flow time and ends."""

    point: Callable[[Array, Array, Array, Array | None], PathPoint]
    """``(t[batch], x0, x1, noise)`` -> PathPoint; ``noise`` is standard normal and shaped like x0 where the
    path is noisy, None where it is not."""
    noisy: bool
    """Whether x_t keeps randomness once both ends are given."""
    alpha: Callable[[Array], Array] | None = None
    """Coefficient of x1 in an affine path, elementwise in t; None for a noisy path."""
    sigma: Callable[[Array], Array] | None = None
    """Coefficient of x0 in an affine path, elementwise in t; None for a noisy path."""

    def sample(self, key: Key[Array, "batch"], t: Times, x0: Events, x1: Events) -> PathPoint:
        """A draw of x_t given the ends, with its velocity and score, row by row.

        Args:
            key: one typed key per row ``[batch]``, so that a row's noise does not depend on its batch; unused
                where the path is noise free.
            t: flow time ``[batch]``, in [0, 1].
            x0: source end ``[batch, *event]``.
            x1: data end, like x0.

        Raises:
            ValueError: where the shapes do not match.
        """
        _check_shapes(t, x0=x0, x1=x1)
        if key.shape != t.shape:
            raise ValueError(
                f"key has shape {key.shape}, but t has shape {t.shape}: give one typed key per row, "
                "for instance jax.random.split(key, batch)."
            )
        if not self.noisy:
            return self.point(t, x0, x1, None)
        noise = jax.vmap(lambda row_key: jax.random.normal(row_key, x0.shape[1:], x0.dtype))(key)
        return self.point(t, x0, x1, noise)


class Coefficients(NamedTuple):
    """Coefficients of an affine path ``x_t = alpha x1 + sigma x0`` and their time derivatives, each like t."""

    alpha: Array
    sigma: Array
    alpha_dot: Array
    sigma_dot: Array


def affine(alpha: Callable[[Array], Array], sigma: Callable[[Array], Array]) -> Path:
    """The path ``x_t = alpha(t) x1 + sigma(t) x0``, with velocity ``alpha'(t) x1 + sigma'(t) x0``.

    Args:
        alpha: elementwise, differentiable function of t, with alpha(0) about 0 and alpha(1) = 1.
        sigma: likewise, with sigma(0) = 1 and sigma(1) about 0.
    """

    def point(t: Times, x0: Events, x1: Events, noise: Events | None) -> PathPoint:
        _check_shapes(t, x0=x0, x1=x1)
        if noise is not None:
            raise ValueError(f"noise has shape {noise.shape}, but this path is noise free: give None.")
        at_t = _with_derivatives(alpha, sigma, t)
        x = _over_events(at_t.alpha, x1) * x1 + _over_events(at_t.sigma, x0) * x0
        velocity = _over_events(at_t.alpha_dot, x1) * x1 + _over_events(at_t.sigma_dot, x0) * x0
        return PathPoint(x, velocity, None)

    return Path(point, noisy=False, alpha=alpha, sigma=sigma)


def linear(floor: float | int = 0.0) -> Path:
    """The straight path: ``alpha = t``, ``sigma = 1 - (1 - floor) t``.

    ``floor = 0`` is rectified flow (Liu, Gong, Liu, arXiv:2209.03003). With ``floor > 0`` it is the conditional
    OT path of Lipman et al. (arXiv:2210.02747, section 4.1), where x_1 = data + floor x0.

    Args:
        floor: sigma at t = 1, in [0, 1).

    Raises:
        ValueError: for a floor outside [0, 1).
    """
    if not 0 <= floor < 1:
        raise ValueError(f"floor is {floor}; it must lie in [0, 1). Take 0 to end on the data themselves.")
    return affine(alpha=lambda t: t, sigma=lambda t: (1 - t) + floor * t)


def trigonometric() -> Path:
    """The path on the quarter circle: ``alpha = sin(pi t / 2)``, ``sigma = cos(pi t / 2)``.

    Named GVP in SiT (Ma et al., arXiv:2401.08740); from Albergo and Vanden-Eijnden (arXiv:2209.15571).
    """
    # The cosine is written as a sine of 1 - t, which is exactly 0 at t = 1; cos(pi / 2) rounds to -4e-8.
    return affine(
        alpha=lambda t: jnp.sin(math.pi / 2 * t),
        sigma=lambda t: jnp.sin(math.pi / 2 * (1 - t)),
    )


def variance_preserving(beta_min: float | int = 0.1, beta_max: float | int = 20.0) -> Path:
    """The path of variance-preserving diffusion with a noise rate linear in time.

    ``alpha = exp(-T(1 - t) / 2)`` and ``sigma = sqrt(1 - alpha^2)``, with ``T(s) = beta_min s + (beta_max -
    beta_min) s^2 / 2`` the accumulated noise rate at the diffusion time s = 1 - t.

    Ends: alpha(0) = exp(-(beta_min + beta_max) / 4), which is 0.0066 for the defaults and not 0. At t = 1,
    sigma' = -inf and so the conditional velocity is not finite there (infinite, or NaN where x0 is exactly 0):
    take t up to 1 - eps.

    Source: Song et al., arXiv:2011.13456, appendix C, with time reversed.

    Args:
        beta_min: noise rate at the data end, positive.
        beta_max: noise rate at the source end, at least beta_min.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max < inf.
    """
    if not 0 < beta_min <= beta_max < math.inf:
        raise ValueError(
            f"beta_min is {beta_min} and beta_max is {beta_max}; they must satisfy "
            "0 < beta_min <= beta_max < inf."
        )

    def accumulated(t):
        s = 1 - t
        return s * (beta_min + (beta_max - beta_min) / 2 * s)

    # expm1, since 1 - alpha^2 loses all its digits near t = 1.
    return affine(
        alpha=lambda t: jnp.exp(-accumulated(t) / 2),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-accumulated(t))),
    )


def tabulated(alphas_cumprod: ArrayLike) -> Path:
    """The path of a diffusion of discrete steps, by the table of the squares of alpha.

    At ``t = 1 - n / (N - 1)``, for the steps n = 0 (data) .. N - 1 (noise): ``alpha^2 = alphas_cumprod[n]`` and
    ``sigma^2 = 1 - alpha^2``. Between the steps ``log(alpha^2 / sigma^2)`` is linear in t.

    Ends: alpha(0) > 0 and sigma(1) > 0, so that all conversions of this module are finite on [0, 1].

    Args:
        alphas_cumprod: the table ``[N]``, N >= 2, falling from nearly 1 to nearly 0.

    Raises:
        ValueError: for a table of another shape, with values outside (0, 1), or that does not fall everywhere.

    Source: Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", arXiv:2006.11239 (the table).
    """
    table = np.asarray(alphas_cumprod, np.float64)
    if table.ndim != 1 or len(table) < 2:
        raise ValueError(f"alphas_cumprod must have shape [N] with N >= 2, got {table.shape}.")
    if not (table.min() > 0 and table.max() < 1 and (np.diff(table) < 0).all()):
        raise ValueError(
            "alphas_cumprod must fall from step to step within (0, 1), from nearly 1 (data) to nearly 0 (noise), got "
            f"values from {table[0]:g} to {table[-1]:g}."
        )
    log_ratio = (np.log(table) - np.log1p(-table))[::-1]
    times = np.linspace(0, 1, len(table))

    def at(t: Array) -> Array:
        return jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(log_ratio, t.dtype))

    return affine(
        alpha=lambda t: jnp.sqrt(jax.nn.sigmoid(at(t))), sigma=lambda t: jnp.sqrt(jax.nn.sigmoid(-at(t)))
    )


def with_constant_noise(path: Path, noise: float | int) -> Path:
    """An affine path with Gaussian noise of one size added at all times: ``x_t + s e``, ``e ~ N(0, I)``.

    The velocity stays that of the path, and the score is ``-e / s``. On ``linear()`` this is I-CFM (Tong et al.,
    arXiv:2302.00482). The result has no alpha and sigma: the conversions between velocity and score of this
    module do not hold for it.

    Args:
        path: an affine path.
        noise: the standard deviation s of the added noise, positive.

    Raises:
        ValueError: for a noise that is not positive and finite, or a path that is noisy already.
    """
    if not 0 < noise < math.inf:
        raise ValueError(f"noise is {noise}; it must lie in (0, inf). Without noise take the path itself.")
    if path.noisy:
        raise ValueError("path is noisy already; give an affine path, such as linear().")

    def point(t: Times, x0: Events, x1: Events, standard_noise: Events | None) -> PathPoint:
        drawn = _drawn_noise(t, x0, x1, standard_noise)
        inner = path.point(t, x0, x1, None)
        return PathPoint(inner.x + noise * drawn, inner.velocity, -drawn / noise)

    return Path(point, noisy=True)


def brownian_bridge(diffusion: float | int) -> Path:
    """The Brownian bridge between the ends, ``x_t = mu_t + g sqrt(t (1 - t)) e`` (SB-CFM).

    With ``mu_t = (1 - t) x0 + t x1`` and ``e ~ N(0, I)``:
    velocity ``(1 - 2t) / (2 t (1 - t)) (x_t - mu_t) + x1 - x0``, score ``-(x_t - mu_t) / (g^2 t (1 - t))``, so that
    velocity + g^2 / 2 score is the drift ``(x1 - x_t) / (1 - t)`` of the bridge as an SDE.

    Ends: at t = 0 and t = 1 the position is exactly x0 and x1, but velocity and score are infinite, each
    coordinate with a sign set by its noise (NaN for a noise of exactly 0). Train with t in [eps, 1 - eps].

    The marginals are those of a Schroedinger bridge only if the ends are coupled by entropic optimal transport
    with regularisation ``epsilon = 2 g^2`` for the cost |x0 - x1|^2.

    Source: Tong et al., arXiv:2302.00482 and arXiv:2307.03672.

    Args:
        diffusion: the noise level g, positive.

    Raises:
        ValueError: for a diffusion that is not positive and finite.
    """
    if not 0 < diffusion < math.inf:
        raise ValueError(f"diffusion is {diffusion}; it must lie in (0, inf). Without noise take linear().")

    def point(t: Times, x0: Events, x1: Events, noise: Events | None) -> PathPoint:
        drawn = _drawn_noise(t, x0, x1, noise)
        time = _over_events(t, x0)
        spread = diffusion * jnp.sqrt(time * (1 - time))
        # The noise instead of (x_t - mu_t) / spread: no difference of close numbers near the ends.
        x = (1 - time) * x0 + time * x1 + spread * drawn
        velocity = diffusion**2 * (1 - 2 * time) / (2 * spread) * drawn + (x1 - x0)
        return PathPoint(x, velocity, -drawn / spread)

    return Path(point, noisy=True)


def coefficients(path: Path, t: Float[Array, "*shape"]) -> Coefficients:
    """Coefficients alpha, sigma of an affine path at t and their derivatives (by autodiff), each like t.

    Raises:
        ValueError: for a path that has no coefficients.
    """
    if path.alpha is None or path.sigma is None:
        raise ValueError(
            "this path has no alpha and sigma (it is a bridge, or carries added noise), so its velocity and "
            "score do not determine each other: that needs x_t = alpha(t) x1 + sigma(t) x0 with x0 ~ N(0, I) "
            "independent of x1. Give linear(), trigonometric(), variance_preserving() or affine(alpha, sigma)."
        )
    return _with_derivatives(path.alpha, path.sigma, t)


def score_from_velocity(path: Path, t: Times, x: Events, velocity: Events) -> Events:
    """Marginal score ``grad log p_t(x) = (alpha v - alpha' x) / (sigma D)``, with ``D = alpha' sigma - alpha sigma'``.

    Holds for the marginal velocity ``v = E[u_t | x_t = x]`` of an affine path whose source is N(0, I) and
    *independent* of the data. Not under an optimal-transport coupling, where the ends are dependent.

    Ends: regular where sigma > 0 (at t = 0 of the linear and trigonometric paths it is -x); not finite, that is
    infinite or NaN, where sigma = 0: at t = 1 of every path here but the linear one with a floor.

    Args:
        path: an affine path.
        t: flow time ``[batch]``, in [0, 1].
        x: position ``[batch, *event]``.
        velocity: v at (t, x), like x.

    Raises:
        ValueError: for a path without alpha and sigma, or shapes that do not match.
    """
    _check_shapes(t, x=x, velocity=velocity)
    at_t = coefficients(path, t)
    numerator = _over_events(at_t.alpha, x) * velocity - _over_events(at_t.alpha_dot, x) * x
    return numerator / _over_events(at_t.sigma * _determinant(at_t), x)


def noise_from_velocity(path: Path, t: Times, x: Events, velocity: Events) -> Events:
    """Expected source end ``E[x0 | x_t = x] = (alpha' x - alpha v) / D``; arguments as in score_from_velocity.

    It solves ``x = alpha E[x1|x] + sigma E[x0|x]`` and ``v = alpha' E[x1|x] + sigma' E[x0|x]``, so that, unlike the
    score, it holds for every source and every coupling of which v is the marginal velocity.

    Ends: regular on [0, 1] for the linear (with or without floor) and trigonometric paths; NaN at t = 1 of the
    variance-preserving path, whose velocity is infinite there.

    Raises:
        ValueError: for a path without alpha and sigma, or shapes that do not match.
    """
    _check_shapes(t, x=x, velocity=velocity)
    at_t = coefficients(path, t)
    numerator = _over_events(at_t.alpha_dot, x) * x - _over_events(at_t.alpha, x) * velocity
    return numerator / _over_events(_determinant(at_t), x)


def data_from_velocity(path: Path, t: Times, x: Events, velocity: Events) -> Events:
    """Expected data end ``E[x1 | x_t = x] = (sigma v - sigma' x) / D``; arguments as in score_from_velocity.

    Conditions and ends as in noise_from_velocity: every coupling, and regular but for the variance-preserving
    path at t = 1.

    Raises:
        ValueError: for a path without alpha and sigma, or shapes that do not match.
    """
    _check_shapes(t, x=x, velocity=velocity)
    at_t = coefficients(path, t)
    numerator = _over_events(at_t.sigma, x) * velocity - _over_events(at_t.sigma_dot, x) * x
    return numerator / _over_events(_determinant(at_t), x)


def velocity_from_score(path: Path, t: Times, x: Events, score: Events) -> Events:
    """Marginal velocity ``v = (alpha'/alpha) x + eta score``, with ``eta = sigma (sigma alpha'/alpha - sigma')``.

    The inverse of score_from_velocity, under the same conditions: a source N(0, I) independent of the data.

    Ends: not finite where alpha = 0, at t = 0 of the linear and trigonometric paths; regular at t = 1, where a
    sigma of 0 leaves ``alpha' x``, but for the variance-preserving path, which gives NaN there.

    Raises:
        ValueError: for a path without alpha and sigma, or shapes that do not match.
    """
    _check_shapes(t, x=x, score=score)
    at_t = coefficients(path, t)
    score_weight = _over_events(at_t.sigma * _determinant(at_t), x)
    # Summed before the division: near alpha = 0 the two terms cancel.
    return (_over_events(at_t.alpha_dot, x) * x + score_weight * score) / _over_events(at_t.alpha, x)


def velocity_from_noise(path: Path, t: Times, x: Events, noise: Events) -> Events:
    """Marginal velocity ``v = (alpha' x - D n) / alpha`` from the expected source end ``n = E[x0 | x_t = x]``.

    The inverse of noise_from_velocity, for every coupling. Ends: not finite where alpha = 0, at t = 0 of the
    linear and trigonometric paths, nor at t = 1 of the variance-preserving path.

    Raises:
        ValueError: for a path without alpha and sigma, or shapes that do not match.
    """
    _check_shapes(t, x=x, noise=noise)
    at_t = coefficients(path, t)
    numerator = _over_events(at_t.alpha_dot, x) * x - _over_events(_determinant(at_t), x) * noise
    return numerator / _over_events(at_t.alpha, x)


def velocity_from_data(path: Path, t: Times, x: Events, data: Events) -> Events:
    """Marginal velocity ``v = (sigma' x + D d) / sigma`` from the expected data end ``d = E[x1 | x_t = x]``.

    The inverse of data_from_velocity, for every coupling. Ends: not finite where sigma = 0, at t = 1 of every
    path here but the linear one with a floor.

    Raises:
        ValueError: for a path without alpha and sigma, or shapes that do not match.
    """
    _check_shapes(t, x=x, data=data)
    at_t = coefficients(path, t)
    numerator = _over_events(at_t.sigma_dot, x) * x + _over_events(_determinant(at_t), x) * data
    return numerator / _over_events(at_t.sigma, x)


def velocity_from_v(path: Path, t: Times, x: Events, v: Events) -> Events:
    """Marginal velocity from a v-prediction ``w = E[alpha x0 - sigma x1 | x_t = x]``, for every coupling.

    ``v = (alpha' (alpha x - sigma w) + sigma' (sigma x + alpha w)) / (alpha^2 + sigma^2)``. Ends: regular but for the
    variance-preserving path at t = 1.

    Raises:
        ValueError: for a path without alpha and sigma, or shapes that do not match.

    Source: Salimans and Ho, "Progressive distillation for fast sampling of diffusion models", arXiv:2202.00512.
    """
    _check_shapes(t, x=x, v=v)
    at_t = coefficients(path, t)
    alpha, sigma = _over_events(at_t.alpha, x), _over_events(at_t.sigma, x)
    rates = _over_events(at_t.alpha_dot, x) * (alpha * x - sigma * v)
    rates += _over_events(at_t.sigma_dot, x) * (sigma * x + alpha * v)
    return rates / (alpha**2 + sigma**2)


def _with_derivatives(
    alpha: Callable[[Array], Array], sigma: Callable[[Array], Array], t: Array
) -> Coefficients:
    alpha_t, alpha_dot = jax.jvp(alpha, (t,), (jnp.ones_like(t),))
    sigma_t, sigma_dot = jax.jvp(sigma, (t,), (jnp.ones_like(t),))
    return Coefficients(alpha_t, sigma_t, alpha_dot, sigma_dot)


def _determinant(at_t: Coefficients) -> Array:
    return at_t.alpha_dot * at_t.sigma - at_t.alpha * at_t.sigma_dot


def _over_events(values: Array, x: Array) -> Array:
    """Values by row ``[batch]`` as ``[batch, 1, ...]`` in the dtype of x, so that a product stays like x."""
    return values.reshape(values.shape + (1,) * (x.ndim - 1)).astype(x.dtype)


def _drawn_noise(t: Array, x0: Array, x1: Array, noise: Array | None) -> Array:
    _check_shapes(t, x0=x0, x1=x1)
    if noise is None:
        raise ValueError(f"this path is noisy: give standard normal noise of the shape of x0, {x0.shape}.")
    _check_shapes(t, x0=x0, noise=noise)
    return noise


def _check_shapes(t: Array, **arrays: Array) -> None:
    (first_name, first), *others = arrays.items()
    if first.ndim == 0 or t.shape != first.shape[:1]:
        raise ValueError(
            f"t has shape {t.shape}, but {first_name} has shape {first.shape}: t must be [batch], with one flow "
            f"time per row of {first_name} [batch, *event]."
        )
    for name, array in others:
        if array.shape != first.shape:
            raise ValueError(
                f"{name} has shape {array.shape}, but {first_name} has shape {first.shape}: they must be equal."
            )
