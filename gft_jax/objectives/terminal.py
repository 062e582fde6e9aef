"""The terminal objective of gradual fine-tuning: weighted flow matching towards ``q^w p_base^(1 - w)``."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from gft_jax.drifts import evaluate
from gft_jax.objectives import weighting as weightings
from gft_jax.objectives.path_rows import PathRows, path_rows, squared_norm
from gft_jax.objectives.time_sampling import uniform
from gft_jax.paths import Path, linear
from gft_jax.types import Batch, Drift, Objective, Terms, TimeSampler, Weighting


class _Rows(NamedTuple):
    path: PathRows
    ratio_weight: Array
    """``q^w p_base^(1 - w)`` over the law of the rows ``[rows]``, up to a factor."""


def terminal(
    drift: Drift,
    log_ratio: Callable[[Array], Array],
    path: Path = linear(),
    *,
    rows_from: Literal["target", "base"] = "target",
    time_sampler: TimeSampler = uniform(),
    weighting: Weighting = weightings.uniform,
) -> Objective:
    """Flow matching with row weights that make the end law ``q^w p_base^(1 - w)``, ``w = 1 / (1 + temperature)``.

    The minimiser over path measures of ``KL(P_1 || q) + beta KL(P || P_base)`` for a memoryless base (or a free start)
    has this end law, which is *another* than the one that the blended drift of `gradual` leads to; both reach q as
    the temperature falls to zero. From rows x1 ~ q the weights are ``exp(-(1 - w) l(x1))``, ``l = log q - log p_base``;
    from rows x1 ~ p_base they are ``exp(w l(x1))``, which is the better choice for small w.

    The weights are normalised over the batch, and noise and data must be *independent*: a coupling that pairs
    within the batch would give the weighted rows a source that is not the law of x0. With a coupling, resample the data
    by their weights first.

    Stats: ``flow_matching_loss``, and two from which comes the effective sample size of the batches, as a share of
    their rows: ``1 / (ratio_weight * inverse_ratio_weight)``. Far below 0.1 the batch means rest on a few rows. It is
    too high in small batches, which miss the rare rows of large weight: see
    `gft_jax.density_ratio.effective_sample_size`. From the rows of a target that is narrower than the base, normal laws
    of standard deviations s < s_base, the weights have infinite variance for
    ``w <= (s_base^2 - 2 s^2) / (2 (s_base^2 - s^2))``; those of base rows then have a finite one for every w.

    A constant that is added to l changes nothing, and should be added where ``|l|`` is in the tens: exponents beyond
    about 40 leave the range of float32. A step in which all weights do is left out by the guard of `finetuner`.

    Args:
        drift: the velocity field that is trained.
        log_ratio: l, ``[rows, *event]`` -> ``[rows]`` in nats, see `gft_jax.density_ratio`.
        path: probability path.
        rows_from: which law the batch's x1 are drawn from.
        time_sampler: draws the flow time of a row.
        weighting: k(t) of the squared error.

    Raises:
        ValueError: for another law of the rows, or a ratio that is no function; in a step, if the log-ratio does not
            return one value a row.

    Source: derived from the description in arXiv:2601.22495.
    """
    if not callable(log_ratio):
        raise ValueError(
            f"log_ratio must be a function of samples, got a {type(log_ratio).__name__}: of a DensityRatio give its "
            "field log_ratio"
        )
    if rows_from not in ("target", "base"):
        raise ValueError(f"rows_from is 'target' or 'base', got {rows_from!r}")

    def prepare(params: Any, base_params: Any, state: Any, batch: Batch, temperature: Array) -> _Rows:
        rows = path_rows(path, time_sampler, weighting, batch)
        ratio = log_ratio(jnp.asarray(batch.x1, rows.x.dtype))
        if ratio.shape != rows.t.shape:
            raise ValueError(
                f"log_ratio must return one value a row, shape {rows.t.shape}, got shape {ratio.shape}"
            )
        target_weight = 1 / (1 + temperature)
        exponent = (target_weight - 1) * ratio if rows_from == "target" else target_weight * ratio
        return _Rows(rows, jnp.exp(exponent).astype(rows.weight.dtype))

    def loss(params: Any, base_params: Any, rows: _Rows, temperature: Array) -> Terms:
        at = rows.path
        error = at.factor * squared_norm(evaluate(drift, params, at.t, at.x, at.cond) - at.velocity)
        weight = at.weight * rows.ratio_weight
        # The inverse of a weight that underflows is infinite: such rows are not counted.
        counted = rows.ratio_weight >= jnp.finfo(rows.ratio_weight.dtype).tiny
        stats = {
            "flow_matching_loss": error,
            "ratio_weight": rows.ratio_weight,
            "inverse_ratio_weight": jnp.where(counted, 1 / jnp.where(counted, rows.ratio_weight, 1), 0),
        }
        return Terms(error, weight, stats)

    return Objective(loss=loss, prepare=prepare)
