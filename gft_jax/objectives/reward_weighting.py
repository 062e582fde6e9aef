"""Reward-weighted flow matching on samples of the model itself: for rewards without a gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gft_jax.couplings import Coupling, apply
from gft_jax.drifts import evaluate
from gft_jax.objectives.path_rows import PathRows, path_rows, row_weights, squared_norm
from gft_jax.objectives.rollouts import check_positive, checked_grid, last_states, ode_step, velocity_of
from gft_jax.objectives.time_sampling import uniform
from gft_jax.objectives.weighting import uniform as uniform_weighting
from gft_jax.paths import Path, linear
from gft_jax.rewards import values_alone
from gft_jax.types import Batch, Drift, Objective, Reward, Terms, TimeSampler


class _Rows(NamedTuple):
    path: PathRows
    reward: Array
    """Reward of each row's sample ``[rows]``, the mean of the others where it is forbidden; with a coupling the mean of
    the samples as they were drawn."""
    forbidden: Array
    """1 where the reward is -inf, else 0 ``[rows]``; with a coupling its mean."""
    preference: Array
    """``exp(tau (r - mean r))`` ``[rows]``; with a coupling its mean, since the samples then come by their weights."""


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

    The samples are made from the batch's noise, and paired with noise that is drawn anew. Only the reward's values are
    used, so it may count or round. Without the second term the model collapses to the best of its samples.

    With a coupling the samples are first resampled by their weights (systematic resampling, within the rows of a
    device), with their conditions, and then coupled; each row has the mean weight. Weights after a coupling would
    give noise the law of what it is coupled to, which is not N(0, I): where x0 and x1 are nearly the same, weights
    would change nothing. The expectation of the weighted sum is the same; the second term is then on paths to the
    resampled samples. A batch's own weights stay with their samples through resampling and coupling.

    The weights are ``exp(tau (r - r_mean))`` with a running mean of the reward (decay 0.9) in place of zero: a common
    factor, without which alpha would mean another thing for each offset of the reward.

    A reward of -inf forbids a sample: its weight is zero. One of +inf or nan makes the loss nan, and the training step
    then changes nothing.

    Stats: ``reward`` (of the samples as they were drawn, less the forbidden ones), ``forbidden`` (their share),
    ``flow_matching_loss``, ``base_distance`` (``|v - v_base|^2``), ``preference`` (mean weight).

    Args:
        drift: the velocity field that is trained.
        reward: r, see `gft_jax.rewards`; no gradient is taken.
        sharpness: tau > 0, finite, per unit of reward.
        base_weight: alpha >= 0, finite.
        path: probability path.
        coupling: pairs samples and fresh noise; None for the independent one.
        num_steps: N equal Euler steps of sampling, by default 50.
        times: instead of num_steps a whole grid from 0 to 1.
        time_sampler: draws the flow time of a row.
        max_exponent: cap of ``tau (r - r_mean)``, > 0, finite.

    Raises:
        ValueError: for a number out of range.

    Source: Fan et al., "Online reward-weighted fine-tuning of flow matching with Wasserstein regularization",
    arXiv:2502.06061.
    """
    check_positive("sharpness", sharpness)
    check_positive("base_weight", base_weight, or_zero=True)
    check_positive("max_exponent", max_exponent)
    grid = checked_grid(num_steps, times)

    def init(params: Any, base_params: Any) -> dict[str, Array]:
        return {"mean": jnp.zeros(()), "known": jnp.zeros(())}

    def update(state: dict[str, Array], stats: dict[str, Array], params: Any) -> dict[str, Array]:
        mean = jnp.where(state["known"] > 0, 0.9 * state["mean"] + 0.1 * stats["reward"], stats["reward"])
        new = {"mean": mean.astype(state["mean"].dtype), "known": jnp.ones(())}
        # All samples of a batch may be forbidden.
        return {name: jnp.where(jnp.isfinite(mean), new[name], state[name]) for name in state}

    def preferences(values: Array, state: dict[str, Array]) -> tuple[Array, Array]:
        known = jnp.where(state["known"] > 0, state["mean"], values)
        exponent = jnp.minimum(sharpness * (values - known), max_exponent)
        forbidden = jnp.isneginf(values)
        weights = jnp.where(forbidden, 0, jnp.exp(exponent))
        return jnp.where(jnp.isposinf(values), jnp.nan, weights), forbidden.astype(values.dtype)

    def prepare(
        params: Any, base_params: Any, state: dict[str, Array], batch: Batch, temperature: Array
    ) -> _Rows:
        dtype = jnp.promote_types(batch.x0.dtype, jnp.float32)
        advance = ode_step(diffrax.Euler(), velocity_of(drift, params, batch.cond))
        x1 = last_states(advance, batch.x0.astype(dtype), grid.astype(dtype), 1)[-1]
        key_path, key_noise, key_pairs = jnp.moveaxis(
            jax.vmap(lambda key: jax.random.split(key, 3))(batch.key), 1, 0
        )
        x0 = jax.vmap(lambda key: jax.random.normal(key, x1.shape[1:], dtype))(key_noise)
        cond, weight = batch.cond, row_weights(batch, dtype)
        values = values_alone(reward, x1, cond)
        preference, forbidden = preferences(values, state)
        values = _of_allowed(values, forbidden, weight, state)
        if coupling is not None:
            key_draw, key_coupling = jax.random.split(key_pairs[0])
            drawn = _systematic(key_draw, preference)
            x1, cond, drawn_weight = jax.tree.map(lambda leaf: leaf[drawn], (x1, cond, weight))
            pairing = coupling(key_coupling, x0, x1, cond, None)
            x0, x1, cond, _ = apply(pairing, x0, x1, cond, None)
            values, forbidden, preference = (
                jnp.full_like(each, jnp.sum(weight * each) / jnp.sum(weight))
                for each in (values, forbidden, preference)
            )
            weight = drawn_weight[pairing.target_index]
            weight = weight if pairing.weight is None else weight * pairing.weight
        rows = Batch(x0, x1, key_path, cond, None, weight)
        at = path_rows(path, time_sampler, uniform_weighting, rows)
        return _Rows(at, values, forbidden, preference)

    def loss(params: Any, base_params: Any, rows: _Rows, temperature: Array) -> Terms:
        at = rows.path
        velocity = evaluate(drift, params, at.t, at.x, at.cond)
        base = jax.lax.stop_gradient(evaluate(drift, base_params, at.t, at.x, at.cond))
        error, distance = squared_norm(velocity - at.velocity), squared_norm(velocity - base)
        stats = {
            "reward": rows.reward,
            "forbidden": rows.forbidden,
            "flow_matching_loss": error,
            "base_distance": distance,
            "preference": rows.preference,
        }
        return Terms(rows.preference * error + base_weight * distance, at.weight, stats)

    return Objective(loss=loss, prepare=prepare, init=init, update=update, needs_base=True)


def _of_allowed(values: Array, forbidden: Array, weight: Array, state: dict[str, Array]) -> Array:
    """The values, those of forbidden rows replaced by the mean of the others, or else by what is known of it."""
    counted = (1 - forbidden) * weight
    mean = jnp.sum(counted * jnp.where(forbidden > 0, 0, values)) / jnp.sum(counted)
    known = jnp.where(state["known"] > 0, state["mean"], -jnp.inf)
    return jnp.where(forbidden > 0, jnp.where(jnp.sum(counted) > 0, mean, known), values)


def _systematic(key: Key[Array, ""], weights: Float[Array, "rows"]) -> Int[Array, "rows"]:
    """As many rows, drawn in proportion to their weights: row i appears ``rows w_i / sum w`` times, up to rounding."""
    num_rows, up_to = len(weights), jnp.cumsum(weights)
    at = (jnp.arange(num_rows) + jax.random.uniform(key, (), weights.dtype)) / num_rows
    # Rounding may carry the last one to 1, beyond all rows.
    below_one = jnp.minimum(at, 1 - jnp.finfo(weights.dtype).epsneg)
    return jnp.searchsorted(up_to / up_to[-1], below_one, side="right").astype(jnp.int32)
