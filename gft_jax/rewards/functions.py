"""Rewards that need no weights of their own, and those of a classifier."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gft_jax.types import Reward


def quadratic(
    centre: Float[Array | np.ndarray, "*event"] | float | int, curvature: float | int = 1.0
) -> Reward:
    """``r(x) = -(kappa / 2) |x - m|^2``: nearness to a point; its optimal flows have a closed form.

    Args:
        centre: m, an event or a scalar.
        curvature: kappa > 0, per square of the unit of the data.

    Raises:
        ValueError: for a curvature that is not positive and finite; when called, for a centre that is not an event.
    """
    if not 0 < curvature < math.inf:
        raise ValueError(f"curvature must be positive and finite, got {curvature}")

    def reward(x: Array, cond: Any = None, /) -> Array:
        if np.shape(centre) not in ((), x.shape[1:]):
            raise ValueError(
                f"centre must be a scalar or have the shape of an event, {x.shape[1:]}, got {np.shape(centre)}"
            )
        return -0.5 * curvature * jnp.sum(jnp.square(x - centre).reshape(x.shape[0], -1), axis=-1)

    return reward


def class_log_probability(logits: Callable[[Array], Array], label: int | None = None) -> Reward:
    """``r(x, cond) = log p(label | x)`` of a classifier, in nats.

    Args:
        logits: ``[batch, *event]`` -> ``[batch, num_classes]``, not normalised, with its parameters in it. They become
            constants of each program that calls the reward, which a large classifier makes slow to compile.
        label: the class that is wanted, >= 0, or None: that of each row's cond, integers ``[batch]``; the reward of a
            row whose cond is no class is nan.

    Raises:
        ValueError: (when called) for a label out of range, or without a label and cond.
    """

    def reward(x: Array, cond: Any = None, /) -> Array:
        log_probabilities = jax.nn.log_softmax(logits(x), axis=-1)
        num_classes = log_probabilities.shape[-1]
        if label is not None:
            if not 0 <= label < num_classes:
                raise ValueError(f"label is {label}; the classifier has the classes 0 to {num_classes - 1}")
            return log_probabilities[:, label]
        shape, dtype = getattr(cond, "shape", None), getattr(cond, "dtype", jnp.float32)
        if shape != x.shape[:1] or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"without a label the class is that of the condition: give cond, integers of shape {x.shape[:1]}, got "
                f"{'None' if cond is None else f'{type(cond).__name__} of shape {shape} and dtype {dtype}'}"
            )
        picked = jnp.take_along_axis(log_probabilities, cond[:, None] % num_classes, axis=-1)[:, 0]
        return jnp.where((cond >= 0) & (cond < num_classes), picked, jnp.nan)

    return reward


def scaled(reward: Reward, factor: float | int) -> Reward:
    """``factor r``: with a negative factor, the opposite wish."""
    return lambda x, cond=None, /: factor * reward(x, cond)


def brightness(x: Float[Array, "batch *event"], cond: Any = None, /) -> Float[Array, "batch"]:
    """Mean value of an image, in the unit of the data."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=-1)


def colour(channel: int) -> Reward:
    """How much one colour stands out: mean of a channel minus the mean of the others, in the unit of the data.

    Args:
        channel: of the last axis, which holds two or more.

    Raises:
        ValueError: (when called) for a channel that is not there, or a single one.
    """

    def reward(x: Array, cond: Any = None, /) -> Array:
        num_channels = x.shape[-1] if x.ndim > 1 else 0
        if num_channels < 2 or not 0 <= channel < num_channels:
            raise ValueError(
                f"channel is {channel}; samples of shape {x.shape} have {num_channels} channels on their last axis, "
                "and it takes two or more"
            )
        means = jnp.mean(x.reshape(x.shape[0], -1, num_channels), axis=1)
        return means[:, channel] - jnp.sum(jnp.delete(means, channel, axis=1), axis=1) / (num_channels - 1)

    return reward


def smoothness(x: Float[Array, "batch height width *colours"], cond: Any = None, /) -> Float[Array, "batch"]:
    """Minus the mean squared difference of neighbouring pixels, a smooth stand-in for how well an image compresses.

    In the square of the unit of the data; at most 0, for an image of one colour.

    Raises:
        ValueError: unless images have at least two axes, of two or more pixels.
    """
    if x.ndim < 3 or min(x.shape[1:3]) < 2:
        raise ValueError(
            f"smoothness takes images [batch, height, width, ...] of two or more pixels a side, got {x.shape}"
        )
    down, right = jnp.diff(x, axis=1), jnp.diff(x, axis=2)
    of_rows, of_columns = (
        jnp.mean(jnp.square(step).reshape(x.shape[0], -1), axis=-1) for step in (down, right)
    )
    return -(of_rows + of_columns)
