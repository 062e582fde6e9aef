"""Reward-weighted flow matching on samples of the model itself: for rewards without a gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gft_jax.couplings import Coupling, apply
from gft_jax.drifts import evaluate
from gft_jax.objectives.path_rows import PathRows, path_rows, squared_norm
from gft_jax.objectives.rollouts import checked_grid, last_states, ode_step
from gft_jax.objectives.time_sampling import uniform
from gft_jax.objectives.weighting import uniform as uniform_weighting
from gft_jax.paths import Path, linear
from gft_jax.rewards import values_alone
from gft_jax.types import Batch, Drift, Objective, Reward, Terms, TimeSampler


class _Rows(NamedTuple):
    path: PathRows
    reward: Array
    """Reward of each row's sample ``[rows]``."""
    preference: Array
    """``exp(tau (r - mean r))`` ``[rows]``."""


def reward_weighted(
    drift: Drift,
    reward: Reward,
    *,
    sharpness: float | int,
    base_weight: float | int,
    path: Path = linear(),
    coupling: Coupling | None = None,
    num_steps: int | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    time_sampler: TimeSampler = uniform(),
    max_exponent: float | int = 10.0,
) -> Objective:
    """ORW-CFM-W2: ``E[exp(tau r(x1)) |v - u_t|^2] + alpha E|v - v_base|^2`` on samples x1 of the current model.

    The samples are made from the batch's noise, and paired with noise that is drawn anew; their weights follow them
    through the coupling, since a coupling keeps the order of x1. Only the reward's values are used, so it may count or
    round. Without the second term the model collapses to the best of its samples.

    The weights are ``exp(tau (r - r_mean))`` with a running mean of the reward (decay 0.9) in place of zero: a common
    factor, without which alpha would mean another thing for each offset of the reward.

    Stats: ``reward``, ``flow_matching_loss``, ``base_distance`` (``|v - v_base|^2``), ``preference`` (mean weight).

    Args:
        drift: the velocity field that is trained.
        reward: r, see `gft_jax.rewards`; no gradient is taken.
        sharpness: tau > 0, per unit of reward.
        base_weight: alpha >= 0.
        path: probability path.
        coupling: pairs samples and fresh noise; None for the independent one.
        num_steps: N equal Euler steps of sampling, by default 50.
        times: instead of num_steps a whole grid from 0 to 1.
        time_sampler: draws the flow time of a row.
        max_exponent: cap of ``tau (r - r_mean)``, > 0.

    Raises:
        ValueError: for a number out of range.

    Source: Fan et al., "Online reward-weighted fine-tuning of flow matching with Wasserstein regularization",
    arXiv:2502.06061.
    """
    for name, value, holds, allowed in (
        ("sharpness", sharpness, sharpness > 0, "> 0"),
        ("base_weight", base_weight, base_weight >= 0, ">= 0"),
        ("max_exponent", max_exponent, max_exponent > 0, "> 0"),
    ):
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {value}")
    grid = checked_grid(num_steps, times)

    def init(params: Any, base_params: Any) -> dict[str, Array]:
        return {"mean": jnp.zeros(()), "known": jnp.zeros(())}

    def update(state: dict[str, Array], stats: dict[str, Array], params: Any) -> dict[str, Array]:
        mean = jnp.where(state["known"] > 0, 0.9 * state["mean"] + 0.1 * stats["reward"], stats["reward"])
        return {"mean": mean.astype(state["mean"].dtype), "known": jnp.ones(())}

    def prepare(
        params: Any, base_params: Any, state: dict[str, Array], batch: Batch, temperature: Array
    ) -> _Rows:
        dtype = jnp.promote_types(batch.x0.dtype, jnp.float32)
        advance = ode_step(diffrax.Euler(), drift, params, batch.cond)
        x1 = last_states(advance, batch.x0.astype(dtype), grid.astype(dtype), 1)[-1]
        key_path, key_noise, key_pairs = jnp.moveaxis(
            jax.vmap(lambda key: jax.random.split(key, 3))(batch.key), 1, 0
        )
        x0 = jax.vmap(lambda key: jax.random.normal(key, x1.shape[1:], dtype))(key_noise)
        cond, source_cond = batch.cond, None
        if coupling is not None:
            pairing = coupling(key_pairs[0], x0, x1, cond, None)
            x0, x1, cond, source_cond = apply(pairing, x0, x1, cond, None)
        values = values_alone(reward, x1, cond)
        known = jnp.where(state["known"] > 0, state["mean"], values)
        exponent = jnp.minimum(sharpness * (values - known), max_exponent)
        rows = Batch(x0, x1, key_path, cond, source_cond, batch.weight)
        return _Rows(path_rows(path, time_sampler, uniform_weighting, rows), values, jnp.exp(exponent))

    def loss(params: Any, base_params: Any, rows: _Rows, temperature: Array) -> Terms:
        at = rows.path
        velocity = evaluate(drift, params, at.t, at.x, at.cond)
        base = jax.lax.stop_gradient(evaluate(drift, base_params, at.t, at.x, at.cond))
        error, distance = squared_norm(velocity - at.velocity), squared_norm(velocity - base)
        stats = {
            "reward": rows.reward,
            "flow_matching_loss": error,
            "base_distance": distance,
            "preference": rows.preference,
        }
        return Terms(rows.preference * error + base_weight * distance, at.weight, stats)

    return Objective(loss=loss, prepare=prepare, init=init, update=update, needs_base=True)
