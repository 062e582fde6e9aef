"""Flows between Gaussians in closed form: what every method of the library can be compared with.

Events are vectors here: means are ``[d]``, covariances ``[d, d]``, samples ``[batch, d]``. Everything works in
float32 and in float64 (``jax.enable_x64``); as an oracle, use float64.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from gft_jax.paths import Path

Velocity = Callable[[Array, Array], Array]
"""A velocity field without parameters: ``(t[batch], x[batch, d])`` -> ``[batch, d]``."""

AverageVelocity = Callable[[Array, Array, Array], Array]
"""An average velocity without parameters: ``(t[batch], s[batch], x[batch, d])`` -> ``[batch, d]``."""


class Gaussian(NamedTuple):
    """A normal law on d-vectors."""

    mean: Array
    """``[d]``."""
    cov: Array
    """``[d, d]``, symmetric and positive semi-definite."""


class AffineMap(NamedTuple):
    """The map ``x -> matrix x + offset`` on d-vectors."""

    matrix: Array
    """``[d, d]``."""
    offset: Array
    """``[d]``."""


def sample(key: Key[Array, ""], law: Gaussian, num_samples: int) -> Float[Array, "num_samples d"]:
    """Independent samples of a Gaussian, whose covariance may be singular.

    Raises:
        ValueError: for fewer than one sample, or a mean and a covariance that do not match.
    """
    _check_law(law)
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    noise = jax.random.normal(key, (num_samples, *law.mean.shape), law.mean.dtype)
    return law.mean + noise @ _square_root(law.cov)


def log_density(law: Gaussian, x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Log-density of a Gaussian with invertible covariance at each x, in nats.

    Raises:
        ValueError: where the shapes do not match.
    """
    _check_law(law)
    if x.shape[-1:] != law.mean.shape:
        raise ValueError(
            f"x has shape {x.shape}, but the mean has shape {law.mean.shape}: x must be [..., d]."
        )
    factor = jnp.linalg.cholesky(law.cov)
    centred = (x - law.mean).reshape(-1, law.mean.size)
    whitened = jax.scipy.linalg.solve_triangular(factor, centred.T, lower=True)
    log_volume = jnp.sum(jnp.log(jnp.diagonal(factor))) + law.mean.size / 2 * math.log(2 * math.pi)
    return (-0.5 * jnp.sum(whitened**2, axis=0) - log_volume).reshape(x.shape[:-1])


def w2(p: Gaussian, q: Gaussian) -> Float[Array, ""]:
    """2-Wasserstein distance (the root, not its square) of two Gaussians.

    ``W2^2 = |m_p - m_q|^2 + min_U |S_p^(1/2) - S_q^(1/2) U|_F^2`` over the orthogonal matrices U, which equals the
    Bures form ``tr S_p + tr S_q - 2 tr (S_p^(1/2) S_q S_p^(1/2))^(1/2)`` and does not cancel where p is close to q.

    Source: Bhatia, Jain, Lim, "On the Bures-Wasserstein distance between positive definite matrices",
    arXiv:1712.01504, theorem 1.

    Raises:
        ValueError: where the shapes do not match.
    """
    _check_pair(p, q)
    root_p, root_q = _square_root(p.cov), _square_root(q.cov)
    left, _, right = jnp.linalg.svd(root_q @ root_p)
    deviation = root_p - root_q @ (left @ right)
    return jnp.sqrt(jnp.sum((p.mean - q.mean) ** 2) + jnp.sum(deviation**2))


def monge_map(source: Gaussian, target: Gaussian) -> AffineMap:
    """The optimal-transport map of two Gaussians for the squared distance.

    ``matrix = S0^(-1/2) (S0^(1/2) S1 S0^(1/2))^(1/2) S0^(-1/2)``, ``offset = m1 - matrix m0``. The optimal coupling has
    the cross covariance ``Cov(x1, x0) = matrix @ source.cov``, to be given as ``cross`` elsewhere in this module.

    Args:
        source: law of x0, with invertible covariance S0.
        target: law of x1.

    Raises:
        ValueError: where the shapes do not match.
    """
    _check_pair(source, target)
    root = _square_root(source.cov)
    inverse_root = jnp.linalg.inv(root)
    matrix = inverse_root @ _square_root(root @ target.cov @ root) @ inverse_root
    return AffineMap(matrix, target.mean - matrix @ source.mean)


def marginal_law(
    path: Path,
    source: Gaussian,
    target: Gaussian,
    t: Float[Array, ""] | float | int,
    cross: Float[Array, "d d"] | None = None,
) -> Gaussian:
    """Law of x_t on a path of `gft_jax.paths`, noisy or not, whose ends are jointly Gaussian.

    Args:
        path: the probability path.
        source: law of x0.
        target: law of x1.
        t: flow time, a scalar.
        cross: cross covariance ``Cov(x1, x0)`` of the coupling, rows for x1; None for independent ends.

    Raises:
        ValueError: where the shapes do not match.
    """
    _check_pair(source, target, cross)
    weights, _ = _weights(path, jnp.asarray(t, source.mean.dtype))
    return Gaussian(
        weights.x0 * source.mean + weights.x1 * target.mean,
        _covariance(weights, weights, source, target, cross),
    )


def marginal_velocity(
    path: Path, source: Gaussian, target: Gaussian, cross: Float[Array, "d d"] | None = None
) -> Velocity:
    """Marginal velocity ``v(t, x) = E[u_t | x_t = x]`` of a path whose ends are jointly Gaussian.

    It is affine in x: ``E[u_t] + Cov(u_t, x_t) Cov(x_t)^(-1) (x - E[x_t])``. For the linear path from N(0, I) to an
    independent N(m, S): ``m + (t S - (1 - t) I) (t^2 S + (1 - t)^2 I)^(-1) (x - t m)``.

    Not finite where the conditional velocity of the path is not (variance-preserving at t = 1, Brownian bridge at
    t = 0 and 1) and where Cov(x_t) is singular.

    Args:
        path: the probability path, noisy or not.
        source: law of x0.
        target: law of x1.
        cross: cross covariance ``Cov(x1, x0)`` of the coupling, rows for x1; None for independent ends.

    Returns:
        The function ``(t[batch], x[batch, d])`` -> ``[batch, d]``.

    Raises:
        ValueError: where the shapes do not match.
    """
    _check_pair(source, target, cross)

    def row(t: Array, x: Array) -> Array:
        at_t, rate = _weights(path, t)
        mean = at_t.x0 * source.mean + at_t.x1 * target.mean
        mean_rate = rate.x0 * source.mean + rate.x1 * target.mean
        cov = _covariance(at_t, at_t, source, target, cross)
        cov_with_rate = _covariance(rate, at_t, source, target, cross)
        return mean_rate + cov_with_rate @ jnp.linalg.solve(cov, x - mean)

    def velocity(t: Float[Array, "batch"], x: Float[Array, "batch d"]) -> Float[Array, "batch d"]:
        if x.shape != (*t.shape, *source.mean.shape):
            raise ValueError(
                f"x has shape {x.shape}, but t has shape {t.shape} and the mean {source.mean.shape}: "
                "x must be [batch, d] with t [batch]."
            )
        return jax.vmap(row)(t, x)

    return velocity


def average_velocity(
    path: Path, source: Gaussian, target: Gaussian, cross: Float[Array, "d d"] | None = None
) -> AverageVelocity:
    """Mean over [t, s] of `marginal_velocity` along its own flow, ``u(t, s, x) = (phi(t, s, x) - x) / (s - t)``.

    Where the covariances of the ends, and the cross covariance, are symmetric and commute (a source N(m, c I) that is
    independent of the data, or coupled to it by `monge_map`), the flow is
    ``phi(t, s, x) = m_s + S_s^(1/2) S_t^(-1/2) (x - m_t)``, m_t and S_t the mean and the covariance of x_t. At s = t
    the average velocity is the velocity. Defined for s < t too; not finite where S_t is singular at t.

    Args:
        path: the probability path, noisy or not.
        source: law of x0.
        target: law of x1.
        cross: symmetric cross covariance ``Cov(x1, x0)`` of the coupling; None for independent ends.

    Returns:
        The function ``(t[batch], s[batch], x[batch, d])`` -> ``[batch, d]``.

    Raises:
        ValueError: where the shapes do not match, or matrices, unless they are traced, do not commute.
    """
    _check_pair(source, target, cross)
    velocity = marginal_velocity(path, source, target, cross)
    cross = jnp.zeros_like(source.cov) if cross is None else cross
    matrices = jnp.stack([source.cov, target.cov, cross])
    # Incommensurable weights: only what is the same in all three is the same in their sum.
    weights = jnp.sqrt(jnp.array([2.0, 3.0, 5.0], matrices.dtype))
    _, basis = jnp.linalg.eigh(jnp.tensordot(weights, matrices, 1))
    in_basis = basis.T @ matrices @ basis
    spectra = jnp.diagonal(in_basis, axis1=1, axis2=2)
    beside = jnp.max(jnp.abs(in_basis - jax.vmap(jnp.diag)(spectra)))
    rounding = 100 * jnp.finfo(matrices.dtype).eps * jnp.max(jnp.abs(matrices))
    if not isinstance(beside, Tracer) and beside > rounding:
        raise ValueError(
            "the flow is in closed form where the covariances of source and target, and the cross covariance, are "
            f"symmetric and commute; in the basis nearest to a common one, {beside:.1e} is off the diagonal."
        )

    def row(t: Array, s: Array, x: Array) -> Array:
        def law(t: Array) -> tuple[Array, Array]:
            at, _ = _weights(path, t)
            variances = (
                at.x0**2 * spectra[0] + at.x1**2 * spectra[1] + 2 * at.x0 * at.x1 * spectra[2] + at.noise**2
            )
            return at.x0 * source.mean + at.x1 * target.mean, jnp.sqrt(variances)

        (mean_t, sd_t), (mean_s, sd_s) = law(t), law(s)
        length = jnp.where(s == t, 1, s - t)
        moved = basis @ ((sd_s / sd_t - 1) * (basis.T @ (x - mean_t)))
        return (mean_s - mean_t + moved) / length

    def average(
        t: Float[Array, "batch"], s: Float[Array, "batch"], x: Float[Array, "batch d"]
    ) -> Float[Array, "batch d"]:
        if s.shape != t.shape:
            raise ValueError(f"t has shape {t.shape} and s {s.shape}: they must be equal.")
        return jnp.where((s == t)[:, None], velocity(t, x), jax.vmap(row)(t, s, x))

    return average


def blended_velocity(
    velocity_pre: Velocity, velocity_target: Velocity, target_weight: Float[Array, ""] | float | int
) -> Velocity:
    """The blend ``w v_target + (1 - w) v_pre``: the minimiser of gradual fine-tuning at the target weight w.

    Args:
        velocity_pre: the pretrained velocity.
        velocity_target: marginal velocity of the target path.
        target_weight: ``w = 1 / (1 + beta)``, in [0, 1]; an array (a traced one too) is taken as it is.

    Raises:
        ValueError: for a target weight, given as a number, outside [0, 1].
    """
    if not isinstance(target_weight, jax.Array) and not 0 <= target_weight <= 1:
        raise ValueError(f"target_weight is {target_weight}; it must lie in [0, 1].")

    def velocity(t: Float[Array, "batch"], x: Float[Array, "batch d"]) -> Float[Array, "batch d"]:
        return target_weight * velocity_target(t, x) + (1 - target_weight) * velocity_pre(t, x)

    return velocity


def generated_law(
    velocity: Velocity, source: Gaussian, t0: float | int = 0.0, t1: float | int = 1.0, num_steps: int = 512
) -> Gaussian:
    """Law to which the ODE ``dx/dt = v(t, x)`` of an affine velocity carries a Gaussian.

    With ``v(t, x) = A(t) x + b(t)``, both found by autodiff, the mean and the fundamental matrix obey
    ``dm/dt = v(t, m)`` and ``dF/dt = A F``, ``F(t0) = I``; the covariance is ``F S F^T``. Integrated by the
    classical Runge-Kutta method of order 4: with the default steps the error is about 1e-11 in float64 for
    well-conditioned laws, and larger where the velocity has a singularity close by (variance-preserving path with
    a source of non-zero mean, towards t = 1).

    Args:
        velocity: affine in x; a velocity that is not gives the linearisation along the mean's trajectory.
        source: the law at t0.
        t0: flow time of the start; take it inside (0, 1) where the velocity is not finite at 0.
        t1: flow time of the end, likewise; t1 < t0 runs backwards.
        num_steps: Runge-Kutta steps.

    Raises:
        ValueError: for fewer than one step, or a mean and a covariance that do not match.
    """
    _check_law(source)
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1.")
    dtype = source.mean.dtype

    def rate(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        mean, flow = state

        def at_t(x: Array) -> Array:
            return velocity(t[None], x[None])[0]

        mean_rate, tangent = jax.linearize(at_t, mean)
        return mean_rate, jax.vmap(tangent, in_axes=1, out_axes=1)(flow)

    # A row of the tableau: how far into the step, along the rates of the row before, and its share of the sum.
    tableau = jnp.array([[0, 1 / 6], [1 / 2, 1 / 3], [1 / 2, 1 / 3], [1, 1 / 6]], dtype)

    def advance(state: tuple[Array, Array], interval: Array) -> tuple[tuple[Array, Array], None]:
        start, end = interval
        step = end - start

        def stage(carry, row):
            rates, state_sum = carry
            node, share = row
            stage_state = jax.tree.map(lambda y, k: y + node * step * k, state, rates)
            rates = rate((1 - node) * start + node * end, stage_state)
            return (rates, jax.tree.map(lambda y, k: y + share * step * k, state_sum, rates)), None

        no_rates = jax.tree.map(jnp.zeros_like, state)
        (_, state_at_end), _ = jax.lax.scan(stage, (no_rates, state), tableau)
        return state_at_end, None

    # The grid holds t0 and t1 exactly: a time rounded past the end may lie outside the velocity's domain.
    grid = jnp.linspace(t0, t1, num_steps + 1, dtype=dtype)
    start = (source.mean, jnp.eye(source.mean.size, dtype=dtype))
    (mean, flow), _ = jax.lax.scan(advance, start, jnp.stack([grid[:-1], grid[1:]], axis=1))
    return Gaussian(mean, flow @ source.cov @ flow.T)


class _Weights(NamedTuple):
    """Weights of source, data and noise in x_t, or in its velocity."""

    x0: Array
    x1: Array
    noise: Array


def _weights(path: Path, t: Array) -> tuple[_Weights, _Weights]:
    # Every path of the library is linear in (x0, x1, noise), so three scalar events read the weights off.
    unit = jnp.eye(3, dtype=t.dtype)
    point = path.point(jnp.full(3, t), unit[0], unit[1], unit[2] if path.noisy else None)
    return _Weights(*point.x), _Weights(*point.velocity)


def _covariance(
    left: _Weights, right: _Weights, source: Gaussian, target: Gaussian, cross: Array | None
) -> Array:
    """Covariance of two combinations of the ends and the noise."""
    identity = jnp.eye(source.mean.size, dtype=source.cov.dtype)
    cov = left.x0 * right.x0 * source.cov + left.x1 * right.x1 * target.cov
    cov = cov + left.noise * right.noise * identity
    if cross is None:
        return cov
    return cov + left.x1 * right.x0 * cross + left.x0 * right.x1 * cross.T


def _square_root(matrix: Array) -> Array:
    """Symmetric square root of a positive semi-definite matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    # Rounding may leave the zero eigenvalues of a singular matrix slightly negative.
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T


def _check_law(law: Gaussian) -> None:
    if law.mean.ndim != 1 or law.cov.shape != law.mean.shape * 2:
        raise ValueError(
            f"the mean has shape {law.mean.shape} and the covariance {law.cov.shape}: they must be [d] and [d, d]."
        )


def _check_pair(p: Gaussian, q: Gaussian, cross: Array | None = None) -> None:
    _check_law(p)
    _check_law(q)
    if p.mean.shape != q.mean.shape:
        raise ValueError(f"the means have shapes {p.mean.shape} and {q.mean.shape}: they must be equal.")
    if cross is not None and cross.shape != p.cov.shape:
        raise ValueError(f"cross has shape {cross.shape}, but the covariances {p.cov.shape}.")
