"""Drifts from models with another time and another prediction: the one place that turns time and sign together."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gft_jax.paths import Path
from gft_jax.types import Drift, Params

VelocityFrom = Callable[[Path, Array, Array, Array], Array]
"""``(path, t, x, prediction)`` -> velocity: `gft_jax.paths.velocity_from_noise` and the like."""


class ModelTime(NamedTuple):
    """How a model counts time."""

    of_flow_time: Callable[[Array], Array]
    """Flow time ``[batch]`` (0 noise, 1 data) -> what the model is called with ``[batch]``."""
    to_noise: bool
    """Whether the model's time runs from data to noise; a velocity that it predicts then points there too."""


def model_time(
    *, to_noise: bool = True, scale: float | int = 1.0, shift: float | int = 1.0, integer: bool = False
) -> ModelTime:
    """Time of a model: ``scale u``, with ``s = shift u / (1 + (shift - 1) u)`` and s = 1 - t, or t with to_noise=False.

    Examples: ``model_time()`` for noise at 1 and data at 0; ``model_time(scale=1000)`` for noise at 1000, floats;
    ``model_time(scale=999, integer=True)`` for the steps 0 (data) to 999 (noise) of a diffusion. For any other time
    make a `ModelTime` of your own function.

    A ``shift`` is for a network that is called with u where the noise level is s. Samplers that shift the times which
    they visit, and call the network with the noise level there, have none: that belongs to the grid of times.

    Args:
        to_noise: whether time runs from data to noise.
        scale: the model's time at its far end, positive.
        shift: positive; 1 for none.
        integer: whether times are rounded to whole numbers, and passed as int32. The drift is then constant between
            them: it has no derivative by t, which average-velocity training needs.

    Raises:
        ValueError: for a scale or shift that is not positive and finite.

    Source: Esser et al., arXiv:2403.03206, section 5.3.2 (the shift).
    """
    for name, value in (("scale", scale), ("shift", shift)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must lie in (0, inf).")

    def of_flow_time(t: Float[Array, "batch"]) -> Array:
        s = 1 - t if to_noise else t
        time = scale * s / (shift - (shift - 1) * s)
        return jnp.round(time).astype(jnp.int32) if integer else time

    return ModelTime(of_flow_time, to_noise)


def from_convention(
    drift: Drift,
    time: ModelTime,
    path: Path | None = None,
    velocity_from: VelocityFrom | None = None,
    *,
    ends: tuple[float | int, float | int] = (0.0, 1.0),
) -> Drift:
    """The velocity in flow time, from a model that counts time or predicts otherwise.

    The model is called with ``time.of_flow_time(t)``. What it predicts becomes a velocity:

    * a velocity, with ``velocity_from=None``: as it is, or with its sign turned where the model's time runs to noise
      (``noise - data`` of rectified flow). Per unit of s, the model's time without its scale;
    * anything else: by the formula of ``velocity_from`` on ``path``, the path that the model was trained on, in flow
      time. The sign is that of the formula, whichever way the model's time runs: a noise stays a noise.

    ====================================  ==================================================  ======================
    ``velocity_from``                     the model predicts                                  not finite where
    ====================================  ==================================================  ======================
    `gft_jax.paths.velocity_from_noise`   ``E[x0 | x_t]``                                     alpha = 0 (t = 0)
    `gft_jax.paths.velocity_from_score`   ``grad log p_t``, x0 ~ N(0, I) independent of data  alpha = 0 (t = 0)
    `gft_jax.paths.velocity_from_data`    ``E[x1 | x_t]``                                     sigma = 0 (t = 1)
    `gft_jax.paths.velocity_from_v`       ``E[alpha x0 - sigma x1 | x_t]``                    regular
    ====================================  ==================================================  ======================

    and at t = 1 of the variance-preserving path, in any row. There the prediction does not say where x goes, and
    ``ends`` must leave the singular end out: model and formula then take times beyond an end at that end, with an error
    of its distance. Nearby an error of the prediction is multiplied by about 1 / distance, so do not make it tiny:
    1e-3 is usual. Conversions are in float32 at least.

    Args:
        drift: the model in the form of a drift (`from_linen`, ...), called as ``(params, time, x, cond)``.
        time: how it counts time, see `model_time`.
        path: an affine path, needed with ``velocity_from`` alone; `gft_jax.paths.tabulated` for steps of a diffusion.
        velocity_from: the formula; None where the model predicts a velocity.
        ends: first and last flow time at which the model is evaluated.

    Raises:
        ValueError: for ends outside [0, 1] or at which the formula is not finite, a path without formula or a formula
            without path; at the call, if the prediction is not of the shape of x.
    """
    first, last = ends
    if not 0 <= first < last <= 1:
        raise ValueError(f"ends are {ends}; they must satisfy 0 <= first < last <= 1.")
    if (path is None) != (velocity_from is None):
        given, missing = ("path", "velocity_from") if velocity_from is None else ("velocity_from", "path")
        raise ValueError(
            f"{given} was given without {missing}: a model that predicts a velocity needs neither, one that predicts "
            "noise, data or score needs both."
        )
    if path is not None and velocity_from is not None:
        _check_finite(path, velocity_from, ends)

    def converted(params: Params, t: Array, x: Array, cond: Any = None, /) -> Array:
        t = jnp.clip(t, first, last)
        prediction = drift(params, time.of_flow_time(t), x, cond)
        if jnp.shape(prediction) != x.shape:
            raise ValueError(
                f"The model predicted shape {jnp.shape(prediction)} for x of shape {x.shape}; they must be equal. Of a "
                "model that also predicts variances take the first half of the channels."
            )
        if path is None or velocity_from is None:
            return -prediction if time.to_noise else prediction
        dtype = jnp.promote_types(jnp.promote_types(x.dtype, prediction.dtype), jnp.float32)
        return velocity_from(path, t, x.astype(dtype), prediction.astype(dtype))

    return converted


def _check_finite(path: Path, velocity_from: VelocityFrom, ends: tuple[float | int, float | int]) -> None:
    with jax.ensure_compile_time_eval():
        velocity = velocity_from(path, jnp.asarray(ends, jnp.float32), jnp.ones(2), jnp.full(2, 0.5))
        finite = jnp.isfinite(velocity).tolist()
    for end, is_finite in zip(ends, finite, strict=True):
        if not is_finite:
            moved = (1e-3, ends[1]) if end == ends[0] else (ends[0], 1 - 1e-3)
            name = getattr(velocity_from, "__name__", "velocity_from")
            raise ValueError(
                f"{name} is not finite at t = {end} of this path, where the prediction does not determine the "
                f"velocity; leave it out, for instance by ends={moved}."
            )
