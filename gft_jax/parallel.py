"""Compiled fine-tuners, on one device or on many; `couplings.devices` and `pairing.ahead` know of devices, too."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from gft_jax.finetuning import FineTuner, StepInfo, TrainState
from gft_jax.types import Batch

AXIS = "devices"


class Runner(NamedTuple):
    """A compiled fine-tuner. The form, one device or many, changes nothing for its caller.

    State and base parameters are ordinary arrays without a device axis: what `fetch` returns goes into a
    checkpoint, and what a checkpoint holds goes into `place`, whatever the number of devices.
    """

    init: Callable[..., TrainState]
    """``(key, base_params=None, params=None)`` -> placed state."""
    step: Callable[[TrainState, Any, Batch], tuple[TrainState, StepInfo]]
    """``(state, base_params, batch)`` -> ``(state, info)``; the given state is donated (its buffers are reused)."""
    step_many: Callable[[TrainState, Any, Batch], tuple[TrainState, StepInfo]]
    """The same for batches stacked along a leading axis."""
    place: Callable[[Any], Any]
    """Copies a pytree (base parameters, a restored state) to where the steps want it."""
    fetch: Callable[[Any], Any]
    """Copies a pytree to a single device, out of reach of the donation by later steps."""


def single_device(tuner: FineTuner, device: Any = None) -> Runner:
    """The fine-tuner under ``jax.jit`` on one device, by default the first."""
    sharding = SingleDeviceSharding(jax.local_devices()[0] if device is None else device)

    def place(tree: Any) -> Any:
        return jax.device_put(tree, sharding, may_alias=False)

    def init(key: Any, base_params: Any = None, params: Any = None) -> TrainState:
        return place(tuner.init(key, base_params, params))

    step = jax.jit(lambda *args: tuner.step(*args), donate_argnums=0)
    step_many = jax.jit(lambda *args: tuner.step_many(*args), donate_argnums=0)
    return Runner(init, step, step_many, place, place)


def pmapped(tuner: FineTuner, devices: Sequence[Any] | None = None) -> Runner:
    """The fine-tuner under ``jax.pmap``: every device takes an equal share of the rows of each batch.

    Gradients, weights and diagnostics are summed over the devices before they are divided, so that the step is
    the one of a single device that holds the whole batch, up to the order of sums, also with weighted rows.

    Args:
        tuner: the training method.
        devices: local devices; default all of them.

    Raises:
        ValueError: if the rows of a batch do not divide evenly over the devices.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    num_devices = len(devices)
    copied = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree))
    replicated = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())

    def place(tree: Any) -> Any:
        return jax.device_put(tree, replicated, may_alias=False)

    def fetch(tree: Any) -> Any:
        # may_alias=False would still share the buffer of the first device.
        return jax.device_put(copied(tree), SingleDeviceSharding(devices[0]))

    def init(key: Any, base_params: Any = None, params: Any = None) -> TrainState:
        return place(tuner.init(key, base_params, params))

    def mapped(step: Callable, row_axis: int) -> Callable:
        # Without a device axis on state and base (in_axes and out_axes None) they stay ordinary replicated
        # arrays, that need no unreplicating; only the batch is split.
        over_devices = jax.pmap(
            lambda state, base, batch: step(state, base, batch, lambda sums: jax.lax.psum(sums, AXIS)),
            axis_name=AXIS,
            in_axes=(None, None, row_axis),
            out_axes=None,
            devices=devices,
            donate_argnums=0,
        )

        def run(state: TrainState, base_params: Any, batch: Batch) -> tuple[TrainState, StepInfo]:
            return over_devices(state, base_params, _split_rows(batch, num_devices, row_axis))

        return run

    return Runner(init, mapped(tuner.step, 0), mapped(tuner.step_many, 1), place, fetch)


# One program: leaf by leaf it takes as long as a small step.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _split_rows(batch: Batch, num_devices: int, axis: int) -> Batch:
    num_rows = batch.x0.shape[axis]
    if num_rows % num_devices:
        raise ValueError(
            f"a batch of {num_rows} rows does not divide over {num_devices} devices: "
            f"use a multiple of {num_devices}, or fewer devices"
        )

    def split(path: Any, leaf: Any) -> Any:
        if leaf.shape[: axis + 1] != batch.x0.shape[: axis + 1]:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}, which does not begin like that of x0, "
                f"{batch.x0.shape}: all leaves of a batch have the same rows"
            )
        return leaf.reshape(*leaf.shape[:axis], num_devices, num_rows // num_devices, *leaf.shape[axis + 1 :])

    return jax.tree_util.tree_map_with_path(split, batch)
