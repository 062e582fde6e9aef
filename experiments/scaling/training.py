"""Memory and collectives of a training step of this library: Adam, an average, float32 state, bfloat16 computation."""

from typing import NamedTuple

from experiments.scaling.collectives import Traffic, all_gather, all_reduce, groups, reduce_scatter
from experiments.scaling.hardware import Hardware
from experiments.scaling.transformer import (
    ALL,
    Kept,
    Transformer,
    block_parameters,
    kept_bytes,
    parameters,
)

FLOAT = 4
"""Bytes of parameters, their average, each of Adam's two moments, and the gradient."""
BFLOAT16 = 2
"""Bytes of a number of the computation, and of the base, in the tables."""
STATE = 4 * FLOAT
"""Bytes of the state for a parameter."""
UPDATE = 3 * FLOAT
"""Bytes for a parameter at the peak of an update: the gradient, and two values that wait until the guard knows that all
is finite. Read off the compiled step, not derived."""
LOOP = FLOAT
"""Bytes for a parameter gathered whole that a loop over micro-batches holds beside all that is accounted for. Read off,
too."""


class Setting(NamedTuple):
    """A training step on so many devices."""

    shape: Transformer
    hardware: Hardware
    num_devices: int
    fsdp: int
    """Devices over which a copy of parameters, base and optimiser state is split; 1 is a copy on each."""
    images: int
    """Rows of a batch on each device."""
    num_microbatches: int
    kept: Kept
    gradual: bool = True
    """Whether the base is evaluated on every row, else plain fine-tuning."""
    base: int = BFLOAT16
    """Bytes of a parameter of the base."""
    compute: int = BFLOAT16
    """Bytes of a number of the computation."""
    fused_attention: bool = True
    """Whether attention's weights are never written out."""
    by_layer: bool = False
    """Whether parameters are gathered block by block, in both passes, instead of whole, once a step (as here)."""

    @property
    def part(self) -> float:
        """Parameters that a device holds."""
        return parameters(self.shape) / self.fsdp


class Memory(NamedTuple):
    """Bytes on a device; the last four at the moment when most is needed."""

    params: float
    average: float
    optimiser: float
    base: float
    gathered: float
    """Parameters made whole, and their copy in the dtype of the computation."""
    gradient: float
    activations: float
    update: float
    """Beyond the gradient."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def memory(setting: Setting) -> Memory:
    """Bytes on each device.

    The transient part is that of the neediest of three moments: the base's forward pass, the backward pass with what
    all blocks keep and all values of one, the update. Small arrays that are whole on every device (biases) are counted
    as split.
    """
    shape, part, whole = setting.shape, setting.part, parameters(setting.shape)
    split, accumulates = setting.fsdp > 1, setting.num_microbatches > 1
    images = setting.images // setting.num_microbatches
    # Of a model gathered by layer two blocks are whole: one at work, one on its way.
    gathered = min(whole, 2 * block_parameters(shape)) if setting.by_layer else whole
    base_gathered = setting.base * gathered if setting.gradual and split else 0.0
    copies = setting.compute * gathered if setting.compute != FLOAT else 0.0
    base_copies = copies if setting.gradual and setting.base != setting.compute else 0.0
    one_block = kept_bytes(shape, ALL, setting.compute, setting.fused_attention)
    kept = kept_bytes(shape, setting.kept, setting.compute, setting.fused_attention)
    forward = (base_gathered + base_copies, 0.0, images * one_block, 0.0)
    backward = (
        FLOAT * gathered * split + copies + base_gathered * accumulates,
        FLOAT * (part + gathered if setting.by_layer else whole)
        + accumulates * (FLOAT * part + LOOP * gathered * split),
        images * (shape.depth * kept + one_block),
        0.0,
    )
    update = (0.0, FLOAT * part, 0.0, (UPDATE - FLOAT) * part)
    base = setting.base * part * setting.gradual
    return Memory(
        FLOAT * part, FLOAT * part, 2 * FLOAT * part, base, *max(forward, backward, update, key=sum)
    )


def traffic(setting: Setting) -> Traffic:
    """What a device sends in a step.

    Copies on every device add up their gradients once a step. Split ones gather parameters and base once a step, and
    add up gradients once a micro-batch: scattered over the copy's devices, then over those with the same part.
    """
    size = FLOAT * parameters(setting.shape)
    copy, same_part = groups(setting.num_devices, setting.fsdp)
    if setting.fsdp == 1:
        return all_reduce(size, same_part)
    times = 2 * setting.num_microbatches if setting.by_layer else 1
    sent = Traffic().plus(all_gather(size, copy), times)
    if setting.gradual:
        base = all_gather(setting.base * parameters(setting.shape), copy)
        sent = sent.plus(base, setting.num_microbatches if setting.by_layer else 1)
    reduced = reduce_scatter(size, copy).plus(all_reduce(size / setting.fsdp, same_part))
    return sent.plus(reduced, setting.num_microbatches)
