"""Temperature and target weight, and the weight that a student has really reached."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

Step = Int[Array, ""] | np.integer | int
"""A training step: scalar integer >= 0."""

Scalar = Float[Array, ""]


class Cooling(NamedTuple):
    """The temperature by training step, as pure functions; the state is a pytree that a checkpoint holds."""

    init: Callable[[], Any]
    """``()`` -> state."""
    temperature: Callable[[Any, Step], Scalar]
    """``(state, step)`` -> temperature ``beta >= 0`` to train this step with, in the default float type."""
    update: Callable[[Any, Step, dict[str, Array]], Any]
    """``(state, step, stats)`` -> state, after the step; ``stats`` are the objective's diagnostics by name, each
    a scalar: the mean over all rows of the step."""


def target_weight(temperature: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Target weight ``w = 1 / (1 + beta)`` in [0, 1] of a temperature ``beta`` in [0, inf]."""
    return 1.0 / (1.0 + jnp.asarray(temperature))


def temperature(target_weight: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Temperature ``beta = (1 - w) / w`` in [0, inf] of a target weight ``w`` in [0, 1]."""
    weight = jnp.asarray(target_weight)
    return (1.0 - weight) / weight


def effective_target_weight(
    displacement_squared: Float[ArrayLike, "*shape"], displacement_along_target: Float[ArrayLike, "*shape"]
) -> Float[Array, "*shape"]:
    """Target weight that the student has reached, ``w_hat = E|r|^2 / E<r, d>``.

    Here ``r = v_theta - v_pre`` is the student's displacement and ``d = u - v_pre`` the target's, ``u`` being the
    conditional velocity. At the optimum for target weight ``w``, ``E<r, d> = w E|u* - v_pre|^2`` and
    ``E|r|^2 = w^2 E|u* - v_pre|^2``, so that ``w_hat = w`` for any coupling; below it the student lags. It is a
    ratio of means: pass means over many rows (see `displacement_average`), never average the ratio. It is
    necessary, not sufficient: regions already fitted can hide an unfitted mode, and noise in ``r`` raises it.

    Args:
        displacement_squared: ``E|r|^2``, >= 0.
        displacement_along_target: ``E<r, d>``, any sign.

    Returns:
        ``w_hat``, and 0 where it is undefined because ``E<r, d> <= 0``, as at the start, where ``r = 0``.
    """
    squared, along = jnp.asarray(displacement_squared), jnp.asarray(displacement_along_target)
    undefined = along <= 0
    return jnp.where(undefined, 0.0, squared / jnp.where(undefined, 1.0, along))


class MeanDisplacement(NamedTuple):
    """Smoothed means, in the order that `effective_target_weight` takes."""

    displacement_squared: Scalar
    """Of ``|r|^2``."""
    displacement_along_target: Scalar
    """Of ``<r, d>``."""


class DisplacementAverage(NamedTuple):
    """Smooths the two means of `effective_target_weight` over training steps: ``w_hat`` is that of the state."""

    init: Callable[[], MeanDisplacement]
    """``()`` -> state."""
    update: Callable[[MeanDisplacement, Scalar, Scalar], MeanDisplacement]
    """``(state, displacement_squared, displacement_along_target)`` -> state."""


def displacement_average(decay: float = 0.95) -> DisplacementAverage:
    """Exponential averages ``m <- decay m + (1 - decay) new`` of ``|r|^2`` and ``<r, d>``, for their ratio.

    Both start at zero, which cancels in the ratio. A step at which either is not finite is left out.

    Args:
        decay: in [0, 1); the averages reach back over about ``1 / (1 - decay)`` steps.

    Raises:
        ValueError: decay out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")

    def init() -> MeanDisplacement:
        return MeanDisplacement(jnp.zeros(()), jnp.zeros(()))

    def update(
        state: MeanDisplacement, displacement_squared: Scalar, displacement_along_target: Scalar
    ) -> MeanDisplacement:
        new = MeanDisplacement(displacement_squared, displacement_along_target)
        finite = is_finite(new)

        def smooth(mean: Scalar, value: Scalar) -> Scalar:
            return jnp.where(finite, decay * mean + (1 - decay) * value, mean).astype(mean.dtype)

        return jax.tree.map(smooth, state, new)

    return DisplacementAverage(init, update)


def is_finite(displacement: MeanDisplacement) -> Bool[Array, ""]:
    """Whether both means are finite."""
    squared, along = displacement
    return jnp.isfinite(squared) & jnp.isfinite(along)


def check_num_steps(num_steps: int) -> None:
    """Raises ValueError unless the number of steps is an integer that a step counter can hold."""
    if not isinstance(num_steps, numbers.Integral) or not 1 <= num_steps < 2**31:
        raise ValueError(f"num_steps must be an integer from 1 to 2^31 - 1, got {num_steps!r}")
