"""Penalties on top of any method, that hold the model near the base: controls for gradual fine-tuning."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gft_jax.types import Batch, Objective, Terms


def l2_sp(objective: Objective, strength: float) -> Objective:
    """Adds ``strength / 2 |params - base_params|^2``: L2 regularisation towards the starting point.

    The sum runs over all entries of all leaves; it is added to the loss of every row, so to their weighted mean.

    Source: Li, Grandvalet, Davoine, "Explicit inductive bias for transfer learning with convolutional networks",
    arXiv:1802.01483, eq. 3.

    Args:
        objective: the method that is regularised; its parameters must have the structure of the base's.
        strength: of the penalty, >= 0; per unit of squared parameter distance, in the unit of the loss.

    Raises:
        ValueError: for a negative strength; in a step, for parameters of another structure, as those of an adapter.
    """
    if not strength >= 0.0:
        raise ValueError(f"the strength of L2-SP must be >= 0, got {strength}")

    def loss(params: Any, base_params: Any, rows: Any, temperature: Array) -> Terms:
        if jax.tree.structure(params) != jax.tree.structure(base_params):
            raise ValueError(
                "L2-SP is the distance of all parameters from the base's, and those of this drift have another "
                "structure: where an adapter is trained, let the optimiser decay its weights (optax.adamw) instead"
            )
        terms = objective.loss(params, base_params, rows, temperature)
        squares = jax.tree.map(lambda new, base: jnp.sum((new - base) ** 2), params, base_params)
        penalty = 0.5 * strength * sum(jax.tree.leaves(squares))
        return terms._replace(
            loss=terms.loss + penalty, stats=terms.stats | {"l2_sp": jnp.full_like(terms.loss, penalty)}
        )

    return objective._replace(loss=loss, needs_base=True)


def with_replay(objective: Objective, replay: Objective, *, every: int, weight: float) -> Objective:
    """One method for most rows of a batch and another for every ``every``-th row, which holds replayed samples.

    With rows of the new data and samples of the base model in one batch (`gft_jax.pairing.interleaved`), the loss
    is ``mean over new rows of l_new + weight * mean over replayed rows of l_replay``. Flow matching for both is
    prior preservation (Ruiz et al., arXiv:2208.12242); with times that lean towards noise for new rows and towards
    data for replayed ones it is Diff-Tuning (Zhong et al., arXiv:2406.00773).

    The rows count alike: where a batch is spread over devices, no device knows the total weights of new and of
    replayed rows, by which the two means would have to be divided. Batches with row weights are refused, and the
    two methods must not weight their rows themselves. The stats are those of ``objective``, averaged over new rows.

    Args:
        objective: method of the new rows; a method without a state (an ``init``) of its own.
        replay: method of the rows 0, ``every``, 2 ``every``, ...; likewise.
        every: at least 2; must divide the rows of a batch on each device.
        weight: of the replayed rows' mean loss, > 0.

    Raises:
        ValueError: for ``every`` < 2, a weight that is not positive, or a method with a state; in a step, if ``every``
            does not divide the rows, or the batch has row weights.
    """
    if every < 2:
        raise ValueError(f"every counts rows, of which one is replayed, and must be >= 2, got {every}")
    if not weight > 0.0:
        raise ValueError(f"the weight of the replayed rows must be > 0, got {weight}")
    for name, method in (("objective", objective), ("replay", replay)):
        if method.init is not Objective._field_defaults["init"]:
            raise ValueError(
                f"{name} has an init, a state of its own, which a method of some rows of a batch cannot keep: give a "
                "method without one, such as flow_matching"
            )

    def prepare(
        params: Any, base_params: Any, objective_state: Any, batch: Batch, temperature: Array
    ) -> tuple[Any, Any]:
        if batch.weight is not None:
            raise ValueError(
                f"with_replay takes the rows of a batch alike, got row weights of shape {batch.weight.shape}: give "
                "batches with weight=None"
            )
        num_rows = batch.key.shape[0]
        if num_rows % every:
            raise ValueError(
                f"every={every} must divide the rows of a batch on a device, got {num_rows} rows"
            )
        new, replayed = (
            jax.tree.map(lambda leaf, index=index: leaf[index], batch) for index in split(num_rows)
        )
        return (
            objective.prepare(params, base_params, objective_state, new, temperature),
            replay.prepare(params, base_params, objective_state, replayed, temperature),
        )

    def split(num_rows: int) -> tuple[Any, Any]:
        is_replay = jnp.arange(num_rows) % every == 0
        count = num_rows // every
        return jnp.nonzero(~is_replay, size=num_rows - count)[0], jnp.nonzero(is_replay, size=count)[0]

    def loss(params: Any, base_params: Any, rows: tuple[Any, Any], temperature: Array) -> Terms:
        new, replayed = (
            method.loss(params, base_params, some, temperature)
            for method, some in zip((objective, replay), rows, strict=True)
        )
        # New rows are (every - 1) / every of all: the factors make each mean over all rows a mean over its own.
        share = every / (every - 1)
        num_replayed = replayed.loss.shape[0]
        values = jnp.concatenate([share * new.loss, weight * every * replayed.loss])
        weights = jnp.concatenate([new.weight, replayed.weight])
        stats = {
            name: jnp.concatenate([share * value, jnp.zeros(num_replayed, value.dtype)])
            for name, value in new.stats.items()
        }
        return Terms(values, weights, stats)

    return Objective(loss=loss, prepare=prepare, needs_base=objective.needs_base or replay.needs_base)
