"""The fine-tuner under jit with sharded arrays: rows, parameters and optimiser state spread over a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gft_jax.finetuning import FineTuner, Spread, StepInfo, TrainState
from gft_jax.parallel.meshes import DATA, FSDP, ShardingRule, over_fsdp
from gft_jax.parallel.placing import fetched, put
from gft_jax.parallel.rows import spread
from gft_jax.parallel.runner import Runner
from gft_jax.types import Batch


def sharded(tuner: FineTuner, mesh: Mesh, *, rule: ShardingRule | None = None) -> Runner:
    """The fine-tuner under ``jax.jit`` on a mesh: data parallel, and fully sharded (FSDP) over its axis "fsdp".

    Every device takes an equal share of the rows of each batch, in the order of the mesh. Parameters, base
    parameters, optimiser state and average are split alike, by one rule, and the state that a step returns lies as the
    one that it took. The step is the one of a single device that holds the whole batch, up to the order of sums. The
    devices of a mesh may be of several processes, each of which then gives its own rows of the batch.

    ``init`` makes the state in its parts: no device holds all of it, if base_params and params come placed.

    Args:
        tuner: the training method.
        mesh: of `gft_jax.parallel.mesh`.
        rule: how a leaf of state or base is split, by name and shape; default `over_fsdp`. A network's own rules go
            here: they should give a moment the split of its parameter, whose name it ends with.

    Raises:
        ValueError: for a mesh with other axes; when called, if the rows of a batch do not divide over the devices,
            or the rule splits a dimension that does not divide.
    """
    if mesh.axis_names != (DATA, FSDP) or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(
            f"the mesh must have the axes ('{DATA}', '{FSDP}') of type Auto, as gft_jax.parallel.mesh makes it, got "
            f"{mesh.axis_names} of types {mesh.axis_types}"
        )
    rule = over_fsdp(mesh.shape[FSDP]) if rule is None else rule
    replicated = NamedSharding(mesh, PartitionSpec())

    def shardings(tree: Any) -> Any:
        def sharding(path: Any, leaf: Any) -> NamedSharding:
            return NamedSharding(mesh, rule(jax.tree_util.keystr(path), jnp.shape(leaf)))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def placed(tree: Any) -> Any:
        return put(tree, shardings(tree), may_alias=True)

    # Said outright: left to itself, XLA moves rows where it should gather parameters.
    @jax.custom_vjp
    def gather(params: Any) -> Any:
        return put(params, replicated)

    gather.defvjp(lambda params: (gather(params), None), lambda _, gradient: (placed(gradient),))
    spread_over = Spread(gather=gather, num_shares=mesh.size, place=placed)

    def init(key: Any, base_params: Any = None, params: Any = None) -> TrainState:
        return tuner.init(key, placed(base_params), params, spread_over)

    def one(state: TrainState, base_params: Any, batch: Batch) -> tuple[TrainState, StepInfo]:
        state, info = tuner.step(state, base_params, batch, spread_over)
        return placed(state), put(info, replicated)

    def many(state: TrainState, base_params: Any, batches: Batch) -> tuple[TrainState, StepInfo]:
        return jax.lax.scan(lambda state, batch: one(state, base_params, batch), state, batches)

    jitted = [jax.jit(each, donate_argnums=0) for each in (one, many)]

    def step(state: TrainState, base_params: Any, batch: Batch) -> tuple[TrainState, StepInfo]:
        return jitted[0](state, base_params, spread(batch, mesh, 0))

    def step_many(state: TrainState, base_params: Any, batches: Batch) -> tuple[TrainState, StepInfo]:
        return jitted[1](state, base_params, spread(batches, mesh, 1))

    return Runner(
        init,
        step,
        step_many,
        lambda tree: put(tree, shardings(tree)),
        lambda tree: fetched(tree, replicated),
    )
