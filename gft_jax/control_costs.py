"""What it costs to steer a flow: costs c(u) of the control ``u = v - v_base``, and the controls that pay.

In ``max_u E[r(x_1)] - lam E int c(u) dt`` the best control at a point is the maximiser of ``<a, u> - lam c(u)``, a the
adjoint there: ``u = (grad c)^(-1)(a / lam)``. A cost is given by three functions of rows ``[rows, *event]``; norms are
Euclidean over the whole event. At ``a = 0`` every control is zero, and so is every slope at ``u = 0``. Costs and slopes
may be differentiated, also there; what is infinite in the derivative of a slope or control at zero (of a slope of
power p < 2, of a control of p > 2) is left out by automatic differentiation.

With a power p > 2 a small control is nearly free and a large one is dear: weak pulls are followed and strong ones
are bounded. With 1 < p < 2 it is the other way round.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Rows = Float[Array, "rows *event"]

_NEWTON_STEPS = 30


class ControlCost(NamedTuple):
    """A convex cost of the control, with its slope and the inverse of the slope."""

    cost: Callable[[Array], Array]
    """c(u): ``[rows, *event]`` -> ``[rows]``, in the square of the unit of a velocity where it is quadratic."""
    slope: Callable[[Array], Array]
    """``grad c(u)``, like u."""
    control: Callable[[Array], Array]
    """The u at which the slope is what is given, ``(grad c)^(-1)``: of ``a / lam``, the best control."""


def check_cost(cost: Any) -> None:
    """Refuses what is no cost, such as the function that makes one.

    Raises:
        ValueError: naming what there is.
    """
    if not isinstance(cost, ControlCost):
        raise ValueError(
            f"cost must be a ControlCost, such as control_costs.quadratic() or norm_power(3), got {cost!r}"
            + (": call it" if callable(cost) else "")
        )


def quadratic() -> ControlCost:
    """``c(u) = |u|^2 / 2``, with ``u = a / lam``."""
    return ControlCost(lambda u: 0.5 * _squared(u), lambda u: u, lambda pull: pull)


def norm_power(p: float | int) -> ControlCost:
    """``c(u) = |u|^p / p``, with ``u = (|a| / lam)^(1 / (p - 1)) a / |a|``; p = 2 is `quadratic`.

    Raises:
        ValueError: unless 1 < p < inf.
    """
    _check_power(p)

    def scaled(x: Rows, power: float | int) -> Rows:
        return x * _over_event(_power(_norm(x), power - 1), x)

    return ControlCost(
        lambda u: _norm(u) ** p / p, lambda u: scaled(u, p - 1), lambda pull: scaled(pull, 1 / (p - 1))
    )


def coordinate_power(p: float | int) -> ControlCost:
    """``c(u) = sum_i |u_i|^p / p``, with ``u_i = sign(a_i) (|a_i| / lam)^(1 / (p - 1))``.

    Raises:
        ValueError: unless 1 < p < inf.
    """
    _check_power(p)

    def scaled(x: Rows, power: float | int) -> Rows:
        return x * _power(jnp.abs(x), power - 1)

    def cost(u: Rows) -> Array:
        return jnp.sum((jnp.abs(u) ** p).reshape(u.shape[0], -1), axis=-1) / p

    return ControlCost(cost, lambda u: scaled(u, p - 1), lambda pull: scaled(pull, 1 / (p - 1)))


def polynomial(coefficients: Mapping[Any, float | int]) -> ControlCost:
    """``c(u) = sum_p c_p |u|^p / p``, with ``u = s a / |a|``, s the root of ``sum_p c_p s^(p - 1) = |a| / lam``.

    The root is found by Newton's method for ``log s``, in which the equation is convex and increasing, so that from
    above it converges without a safeguard.

    Args:
        coefficients: c_p > 0 by power p > 1, e.g. ``{2: 1.0, 4: 0.1}``.

    Raises:
        ValueError: for no powers, a power or coefficient out of range.
    """
    if not isinstance(coefficients, Mapping) or not coefficients:
        raise ValueError(
            "a polynomial cost needs a dictionary of one or more powers with their coefficients, such as "
            f"{{2: 1.0, 4: 0.1}}, got {coefficients!r}"
        )
    for p, coefficient in coefficients.items():
        _check_power(p)
        if not 0 < coefficient < math.inf:
            raise ValueError(f"the coefficient of power {p} must be positive and finite, got {coefficient}")
    terms = tuple(coefficients.items())

    def root(log_size: Array) -> Array:
        """``log s`` from the logarithm of ``|a| / lam``."""
        rates, offsets = jnp.asarray([(p - 1, math.log(c)) for p, c in terms], log_size.dtype).T[..., None]
        # Each term alone gives a bound from above.
        start = jnp.min((log_size - offsets) / rates, axis=0)

        def step(_: Array, log_s: Array) -> Array:
            logs = offsets + rates * log_s
            shares = jax.nn.softmax(logs, axis=0)
            excess = jax.nn.logsumexp(logs, axis=0) - log_size
            return log_s - excess / jnp.sum(shares * rates, axis=0)

        return jax.lax.fori_loop(0, _NEWTON_STEPS, step, start)

    def control(pull: Rows) -> Rows:
        size = _norm(pull)
        safe = jnp.where(size > 0, size, 1)
        return pull * _over_event(jnp.where(size > 0, jnp.exp(root(jnp.log(safe))) / safe, 0), pull)

    def cost(u: Rows) -> Array:
        size = _norm(u)
        return jnp.sum(jnp.stack([c * size**p / p for p, c in terms]), axis=0)

    def slope(u: Rows) -> Rows:
        size = _norm(u)
        factors = jnp.stack([c * _power(size, p - 2) for p, c in terms])
        return u * _over_event(jnp.sum(factors, axis=0), u)

    return ControlCost(cost, slope, control)


def _squared(x: Rows) -> Array:
    return jnp.sum(jnp.square(x).reshape(x.shape[0], -1), axis=-1)


def _norm(x: Rows) -> Array:
    # Scaled by the largest entry: squares of small or large adjoints would leave the range of float32. The scale
    # cancels, so that it is no part of the derivative; that is zero at zero.
    flat = x.reshape(x.shape[0], -1)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flat), axis=-1))
    squared = jnp.sum((flat / jnp.where(largest > 0, largest, 1)[:, None]) ** 2, axis=-1)
    return largest * jnp.sqrt(jnp.where(largest > 0, squared, 1))


def _power(size: Array, power: float | int) -> Array:
    """``size^power`` as a factor of something as small as size: zero at zero for a negative power, too."""
    return jnp.where(size > 0, jnp.where(size > 0, size, 1) ** power, float(power == 0))


def _over_event(values: Array, x: Rows) -> Array:
    return values.reshape(values.shape + (1,) * (x.ndim - 1))


def _check_power(p: float | int) -> None:
    if not 1 < p < math.inf:
        raise ValueError(
            f"the power of a control cost must be above 1 and finite, got {p}: 2 is the quadratic cost"
        )
