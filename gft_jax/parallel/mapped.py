"""The fine-tuner under pmap: a copy of the state on every device, a share of the rows on each."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gft_jax.finetuning import FineTuner, Spread, StepInfo, TrainState
from gft_jax.parallel.placing import fetched, put
from gft_jax.parallel.rows import check_divides
from gft_jax.parallel.runner import Runner
from gft_jax.types import Batch

AXIS = "devices"


def pmapped(tuner: FineTuner, devices: Sequence[Any] | None = None) -> Runner:
    """The fine-tuner under ``jax.pmap``: every device takes an equal share of the rows of each batch.

    Gradients, weights and diagnostics are summed over the devices before they are divided, so that the step is
    the one of a single device that holds the whole batch, up to the order of sums, also with weighted rows. The
    devices of all processes take part; each process gives its own rows of the batch.

    Args:
        tuner: the training method.
        devices: devices of this process; default all, of all processes.

    Raises:
        ValueError: if the rows of a batch do not divide evenly over the devices, or devices are named in a run of
            several processes.
    """
    num_processes = jax.process_count()
    if devices is not None and num_processes > 1:
        raise ValueError(
            f"pmap over {num_processes} processes takes all devices of all of them: leave devices out"
        )
    everywhere = jax.devices() if devices is None else list(devices)
    num_local = len(everywhere) if num_processes == 1 else jax.local_device_count()
    mesh = Mesh(np.asarray(everywhere), (AXIS,))
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(tree: Any) -> Any:
        return put(tree, replicated)

    spread = Spread(sum=lambda sums: jax.lax.psum(sums, AXIS), place=place)

    def init(key: Any, base_params: Any = None, params: Any = None) -> TrainState:
        return tuner.init(key, place(base_params), params, spread)

    def mapped(step: Callable, row_axis: int) -> Callable:
        # Without a device axis on state and base (in_axes and out_axes None) they stay ordinary replicated
        # arrays, that need no unreplicating; only the batch is split.
        over_devices = jax.pmap(
            lambda state, base, batch: step(state, base, batch, spread),
            axis_name=AXIS,
            in_axes=(None, None, row_axis),
            out_axes=None,
            devices=None if num_processes > 1 else everywhere,
            donate_argnums=0,
        )

        def split_and_map(state: TrainState, base_params: Any, batch: Batch) -> tuple[TrainState, StepInfo]:
            return over_devices(state, base_params, _split_rows(batch, num_local, row_axis))

        # pmap prepares its arguments in Python at every call; inside jit it is traced once.
        rows = NamedSharding(mesh, PartitionSpec(*[None] * row_axis, AXIS))
        jitted = jax.jit(split_and_map, in_shardings=(replicated, replicated, rows), donate_argnums=0)

        def run(state: TrainState, base_params: Any, batch: Batch) -> tuple[TrainState, StepInfo]:
            check_divides(batch, num_local, row_axis)
            if num_processes == 1:
                # Rows that were put on a device ahead of time.
                if getattr(batch.x0, "committed", False):
                    batch = jax.device_put(batch, rows)
                return jitted(state, base_params, batch)
            # Under jit each process would have to give the rows of all.
            state, info = split_and_map(state, base_params, batch)
            return _of_all(state, replicated), info

        return run

    return Runner(
        init, mapped(tuner.step, 0), mapped(tuner.step_many, 1), place, lambda tree: fetched(tree, replicated)
    )


def _of_all(state: TrainState, replicated: NamedSharding) -> TrainState:
    """What pmap returns as copies of one process, as arrays of all processes: nothing is moved."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_single_device_arrays(
            leaf.shape, replicated, [shard.data for shard in leaf.addressable_shards]
        ),
        state,
    )


# One program: leaf by leaf it takes as long as a small step.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _split_rows(batch: Batch, num_devices: int, axis: int) -> Batch:
    return jax.tree.map(
        lambda leaf: leaf.reshape(*leaf.shape[:axis], num_devices, -1, *leaf.shape[axis + 1 :]), batch
    )
