"""Regression of a velocity and of a score on conditional paths: flows that are sampled with noise."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from gft_jax.drifts import evaluate
from gft_jax.objectives import weighting as weightings
from gft_jax.objectives.path_rows import path_rows, squared_norm
from gft_jax.paths import Path
from gft_jax.types import Batch, Drift, Objective, Terms, TimeSampler, Weighting


def velocity_and_score(
    drift: Drift,
    score: Drift,
    path: Path,
    *,
    score_weighting: Weighting,
    time_sampler: TimeSampler,
    weighting: Weighting = weightings.uniform,
) -> Objective:
    """``E k(t) |v(t, x_t) - u_t|^2 + l(t) |s(t, x_t) - grad log p_t(x_t | x0, x1)|^2`` over a coupling of the ends.

    For paths with noise of their own: their velocity and their score do not determine each other, and under a
    coupling by optimal transport no conversion holds on any path, so that both are learnt. The minimisers are the
    marginal velocity and the marginal score of the path for *any* coupling; ``v + g^2 / 2 s`` is the drift of an SDE
    with the path's marginals for any noise level g (see `gft_jax.sampling.sample_sde`).

    Source: Tong et al., "Simulation-free Schroedinger bridges via score and flow matching", arXiv:2307.03672, eq. 10.
    Ours differs in the weight of the score, which is an argument.

    Args:
        drift: the velocity field that is trained.
        score: the score that is trained, in the form of a drift with the same params: two heads of one network, or
            two networks over a pair of parameters.
        path: a path that knows its score: `gft_jax.paths.brownian_bridge` or `gft_jax.paths.with_constant_noise`.
        score_weighting: l(t). The conditional score is the noise over its standard deviation, up to sign; weighted
            with the variance the error is that of the noise, of order one at all times. For the Brownian bridge:
            `gft_jax.objectives.weighting.bridge`.
        time_sampler: draws the flow time of a row; for the Brownian bridge, whose conditional velocity and score are
            infinite at both ends, inside (0, 1): ``time_sampling.uniform(0.01, 0.99)``.
        weighting: k(t) of the velocity's squared error.

    Raises:
        ValueError: at the first batch, if the path has no score, or a weighting does not return one value a row.
    """

    def prepare(params: Any, base_params: Any, objective_state: Any, batch: Batch, temperature: Array) -> Any:
        rows = path_rows(path, time_sampler, weighting, batch)
        if rows.score is None:
            raise ValueError(
                "this path has no conditional score (it carries no noise of its own): give brownian_bridge(...) or "
                "with_constant_noise(...); on an affine path with independent ends take flow_matching and as_score"
            )
        score_factor = score_weighting(rows.t)
        if jnp.shape(score_factor) != rows.t.shape:
            raise ValueError(
                f"score_weighting(t) must have one value a row, shape {rows.t.shape}, got shape "
                f"{jnp.shape(score_factor)}"
            )
        return rows, score_factor

    def loss(params: Any, base_params: Any, prepared: Any, temperature: Array) -> Terms:
        rows, score_factor = prepared
        velocity = evaluate(drift, params, rows.t, rows.x, rows.cond)
        found = evaluate(score, params, rows.t, rows.x, rows.cond)
        of_velocity = rows.factor * squared_norm(velocity - rows.velocity)
        of_score = score_factor * squared_norm(found - rows.score)
        stats = {"flow_matching_loss": of_velocity, "score_matching_loss": of_score}
        return Terms(of_velocity + of_score, rows.weight, stats)

    return Objective(loss=loss, prepare=prepare)
