"""Conditional flow matching: regression of the drift on the velocity of conditional paths."""

from typing import Any

from jaxtyping import Array

from gft_jax.drifts import evaluate
from gft_jax.objectives import weighting as weightings
from gft_jax.objectives.path_rows import PathRows, path_rows, squared_norm
from gft_jax.objectives.time_sampling import uniform
from gft_jax.paths import Path, linear
from gft_jax.types import Batch, Drift, Objective, Terms, TimeSampler, Weighting


def flow_matching(
    drift: Drift,
    path: Path = linear(),
    *,
    time_sampler: TimeSampler = uniform(),
    weighting: Weighting = weightings.uniform,
) -> Objective:
    """Conditional flow matching, ``E k(t) |v(t, x_t) - u_t(x_t | x0, x1)|^2`` over a coupling of the ends.

    Used from scratch, or started at pretrained parameters (plain fine-tuning). The temperature is ignored.

    Source: Lipman et al., "Flow matching for generative modeling", arXiv:2210.02747, eq. 9; for any coupling
    Tong et al., arXiv:2302.00482, eq. 10.

    Args:
        drift: the velocity field that is trained.
        path: probability path.
        time_sampler: draws the flow time of a row.
        weighting: k(t) of the squared error.
    """

    def prepare(
        params: Any, base_params: Any, objective_state: Any, batch: Batch, temperature: Array
    ) -> PathRows:
        return path_rows(path, time_sampler, weighting, batch)

    def loss(params: Any, base_params: Any, rows: PathRows, temperature: Array) -> Terms:
        velocity = evaluate(drift, params, rows.t, rows.x, rows.cond)
        error = rows.factor * squared_norm(velocity - rows.velocity)
        return Terms(error, rows.weight, {"flow_matching_loss": error})

    return Objective(loss=loss, prepare=prepare)
