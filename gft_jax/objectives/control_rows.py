"""Points of a path with the velocity that the adjoint asks for there: the regression of adjoint matching."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gft_jax.drifts import evaluate
from gft_jax.objectives.gradient_clip import QuantileClip
from gft_jax.objectives.path_rows import row_weights, squared_norm
from gft_jax.objectives.rollouts import random_steps
from gft_jax.rewards import value_and_gradient
from gft_jax.types import Batch, Drift, Reward, Terms


class ControlRows(NamedTuple):
    """What is regressed on, at ``used`` points of each row's path; all leaves ``[rows, ...]``."""

    t: Array
    """Flow times ``[rows, used]``."""
    x: Array
    """Points ``[rows, used, *event]``."""
    base_velocity: Array
    """``v_base`` there."""
    control: Array
    """The control that is asked for, ``u*``, likewise."""
    factor: Array
    """Weights of the squared error ``[rows, used]``; they add up to one over all points where none is left out."""
    weight: Array
    """Weights of the rows ``[rows]``."""
    cond: Any
    """Conditions, or None."""
    stats: dict[str, Array]
    """Diagnostics of the path, each ``[rows]``."""


class End(NamedTuple):
    """The reward at the end of a path."""

    gradient: Array
    """``grad r(x_1)``, clipped ``[rows, *event]``."""
    stats: dict[str, Array]
    """Reward, norm of the gradient before the clip and whether it is zero; with a clip its logarithm (0 for zero), and
    whether the gradient was left as it is."""


def reward_at_end(
    reward: Reward, x: Float[Array, "rows *event"], cond: Any, clip: QuantileClip | None, threshold: Any
) -> End:
    """Value and gradient of the reward, clipped."""
    values, gradient = value_and_gradient(reward, x, cond)
    norm = jnp.sqrt(squared_norm(gradient))
    stats = {"reward": values, "reward_gradient_norm": norm, "zero_gradient": (norm == 0).astype(norm.dtype)}
    if clip is not None:
        stats["log_gradient_norm"] = jnp.log(jnp.where(norm > 0, norm, 1))
        stats["unclipped"] = ((norm <= threshold) | (threshold == 0)).astype(norm.dtype)
        gradient = clip.clip(threshold, gradient, norm)
    return End(gradient, stats)


def clip_state(clip: QuantileClip | None) -> dict[str, Callable[..., Any]]:
    """``init`` and ``update`` of an objective whose state is the threshold of the clip."""
    if clip is None:
        return {}

    def init(params: Any, base_params: Any) -> Array:
        return jnp.zeros((), jnp.float32)

    def update(threshold: Array, stats: dict[str, Array], params: Any) -> Array:
        return clip.update(threshold, stats["log_gradient_norm"], stats["zero_gradient"], stats["unclipped"])

    return {"init": init, "update": update}


def control_rows(
    batch: Batch,
    t: Float[Array | np.ndarray, "used"],
    x: Float[Array, "used rows *event"],
    base_velocity: Float[Array, "used rows *event"],
    control: Float[Array, "used rows *event"],
    factor: Float[Array | np.ndarray, "used"],
    stats: dict[str, Array],
) -> ControlRows:
    """Rows of a batch from what stands at the times of its paths, which are the same for all rows."""
    num_used, num_rows = x.shape[:2]

    def every_row(values: Array | np.ndarray) -> Array:
        return jnp.broadcast_to(jnp.asarray(values, x.dtype), (num_rows, num_used))

    x, base_velocity, control = (jnp.moveaxis(leaf, 0, 1) for leaf in (x, base_velocity, control))
    weight = row_weights(batch, x.dtype)
    return ControlRows(every_row(t), x, base_velocity, control, every_row(factor), weight, batch.cond, stats)


def largest_norm(adjoints: Float[Array, "used rows *event"]) -> Float[Array, "rows"]:
    """Largest Euclidean norm of a row along its path."""
    return jnp.sqrt(jnp.max(jax.vmap(squared_norm)(adjoints), axis=0))


def some_steps(keys: Key[Array, "rows"], rows: ControlRows, num_used: int | None) -> ControlRows:
    """The rows at ``num_used`` random points of each path, whose weights are raised to make up for the others."""
    num_points = rows.t.shape[1]
    if num_used is None or num_used == num_points:
        return rows
    drawn = random_steps(keys, num_points, num_used)

    def pick(leaf: Array) -> Array:
        return jax.vmap(lambda row, index: row[index])(leaf, drawn)

    t, x, base_velocity, control, factor = map(pick, rows[:5])
    return rows._replace(
        t=t, x=x, base_velocity=base_velocity, control=control, factor=factor * (num_points / num_used)
    )


def every_point(rows: ControlRows) -> tuple[Array, Array, Any]:
    """Times, points and conditions of all rows, point after point: ``[rows used, ...]``."""
    num_used = rows.t.shape[1]
    cond = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_used, axis=0), rows.cond)
    return rows.t.reshape(-1), rows.x.reshape(-1, *rows.x.shape[2:]), cond


def regress(drift: Drift, params: Any, rows: ControlRows) -> Terms:
    """``sum over the points of factor |v - v_base - u*|^2`` for each row."""
    t, x, cond = every_point(rows)
    control = evaluate(drift, params, t, x, cond) - rows.base_velocity.reshape(x.shape)

    def over_points(squares: Array) -> Array:
        return jnp.sum(rows.factor * squares.reshape(rows.factor.shape), axis=1)

    loss = over_points(squared_norm(control - rows.control.reshape(x.shape)))
    shares = rows.factor / jnp.sum(rows.factor, axis=1, keepdims=True)
    size = jnp.sum(shares * squared_norm(control).reshape(shares.shape), axis=1)
    return Terms(loss, rows.weight, {**rows.stats, "matching_loss": loss, "squared_control": size})
