"""The objectives that are compared, each as one program for all strengths.

A method at strength lam is the method at lam = 1 with the reward ``r / lam``: control problem, regression and optimum
are the same (the loss of `draft` is divided by lam). So the factor ``1 / lam`` travels as the condition of each row,
which only the reward reads, and what is compiled once serves every strength. For `orw` the factor is tau itself.
"""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

import gft_jax as gft
from experiments.configs.reward import Reward as Settings
from experiments.methods import TimedPath
from experiments.reward.names import Method
from gft_jax.pairing import Batches
from gft_jax.types import Drift, Objective, Reward

CLIP_NORM = 1.0


def factor_of(method: Method, strength: float) -> float:
    """What the reward is multiplied by: ``1 / lam``, or tau."""
    return 1.0 / strength if method.has_cost_weight else strength


def at_strength(stream: Batches, method: Method, strength: float) -> Batches:
    """The batches of a stream, with the factor of the reward as condition of each row."""
    factor = factor_of(method, strength)

    def with_factor(batch: gft.Batch) -> gft.Batch:
        return batch._replace(cond=jnp.full(batch.key.shape, factor, jnp.float32))

    return stream._replace(
        batch=lambda step: with_factor(stream.batch(step)),
        many=lambda first, count: with_factor(stream.many(first, count)),
    )


def optimizer_of(config: Settings) -> optax.GradientTransformation:
    """Adam on clipped gradients, for every method."""
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(config.learning_rate))


def objective_of(
    method: Method, config: Settings, drift: Drift, path: TimedPath, reward: Reward
) -> Objective:
    """The objective of a method, for batches of `at_strength`."""

    def unconditional(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        return drift(params, t, x, None)

    def scaled(x: Array, cond: Any = None, /) -> Array:
        return cond * reward(x)

    num_steps, most = config.sampling_steps, config.matched_points
    objectives, costs = gft.objectives, gft.control_costs
    if method.family == "am":
        trained = num_steps if method.truncation is None else method.truncation
        return objectives.adjoint_matching(
            unconditional,
            scaled,
            cost_weight=1.0,
            cost=costs.quadratic() if method.power == 2 else costs.norm_power(method.power),
            num_steps=num_steps,
            truncation=trained,
            num_matched=min(most, trained),
        )
    if method.family == "memoryless":
        return objectives.memoryless_adjoint_matching(
            unconditional,
            scaled,
            cost_weight=1.0,
            path=path.path,
            num_steps=num_steps,
            num_matched=min(most, num_steps - 1),
        )
    if method.family == "draft":
        assert method.truncation is not None, "draft-K has a K"
        return objectives.draft(
            unconditional, scaled, cost_weight=1.0, num_steps=num_steps, truncation=method.truncation
        )
    if method.family == "orw":
        return objectives.reward_weighted(
            unconditional,
            scaled,
            sharpness=1.0,
            base_weight=config.orw_base_weight,
            path=path.path,
            num_steps=num_steps,
        )
    return objectives.value_guidance(
        unconditional, scaled, cost_weight=1.0, num_steps=num_steps, num_matched=min(most, num_steps)
    )
