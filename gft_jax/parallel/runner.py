"""What a compiled fine-tuner is, and the one for a single device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from gft_jax.finetuning import FineTuner, StepInfo, TrainState
from gft_jax.parallel.placing import put
from gft_jax.types import Batch


class Runner(NamedTuple):
    """A compiled fine-tuner. The form, one device or many, changes nothing for its caller.

    State and base parameters are ordinary arrays without a device axis, whose ``sharding`` says where they are: a
    state of one form, fetched or read from a checkpoint, goes into ``place`` of any other, whatever the number of
    devices.
    """

    init: Callable[..., TrainState]
    """``(key, base_params=None, params=None)`` -> placed state."""
    step: Callable[[TrainState, Any, Batch], tuple[TrainState, StepInfo]]
    """``(state, base_params, batch)`` -> ``(state, info)``; the given state is donated (its buffers are reused). In a
    run of several processes each gives its own rows of the batch."""
    step_many: Callable[[TrainState, Any, Batch], tuple[TrainState, StepInfo]]
    """The same for batches stacked along a leading axis."""
    place: Callable[[Any], Any]
    """Copies a pytree (base parameters, a restored state) to where the steps want it; what was given stays."""
    fetch: Callable[[Any], Any]
    """Copies a pytree to a single device, out of reach of the donation by later steps. In a run of several processes
    all of them call it together, and each gets a copy."""


def single_device(tuner: FineTuner, device: Any = None) -> Runner:
    """The fine-tuner under ``jax.jit`` on one device, by default the first of this process."""
    sharding = SingleDeviceSharding(jax.local_devices()[0] if device is None else device)

    def place(tree: Any) -> Any:
        return put(tree, sharding)

    def init(key: Any, base_params: Any = None, params: Any = None) -> TrainState:
        return place(tuner.init(key, base_params, params))

    step = jax.jit(lambda *args: tuner.step(*args), donate_argnums=0)
    step_many = jax.jit(lambda *args: tuner.step_many(*args), donate_argnums=0)
    return Runner(init, step, step_many, place, place)
