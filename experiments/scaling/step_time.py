"""Time of a training step by a roofline: an operation takes as long as its arithmetic or, if longer, its bytes."""

from typing import NamedTuple

from experiments.scaling.hardware import Hardware
from experiments.scaling.training import BFLOAT16, FLOAT, STATE, UPDATE, Setting, traffic
from experiments.scaling.transformer import ALL, INPUTS, Transformer, forward_flops, parameters

# A pass of the update over all state: the gradient twice (norm, moments), the state read twice but the average once,
# two values written and read while the guard waits, and the state written.
UPDATE_TRAFFIC = 2 * FLOAT + (STATE - FLOAT) + STATE + 2 * (UPDATE - FLOAT) + STATE
"""Bytes to and from memory for a parameter in an update. Counted by hand."""
CAST_TRAFFIC = FLOAT + BFLOAT16
"""Bytes for a parameter to make its copy in the dtype of the computation."""


class Operation(NamedTuple):
    """An operation of a block on all tokens of a micro-batch."""

    flops: float
    bytes: float
    """Activations read and written, once each."""
    weights: float = 0.0
    """Number of weights."""
    again: bool = False
    """Whether it is computed again where the outputs of products with weights are kept."""


class Seconds(NamedTuple):
    """Seconds of a step on a device, by what limits them."""

    products: float = 0.0
    """Operations that wait for arithmetic."""
    memory: float = 0.0
    """Operations that wait for memory, and the update."""
    links: float = 0.0
    """Collectives, as if nothing ran beside them."""

    @property
    def shown(self) -> float:
        """Collectives after the work, none of them hidden."""
        return sum(self)

    @property
    def hidden(self) -> float:
        """Collectives behind the work, as far as it reaches."""
        return max(self.products + self.memory, self.links)


def operations(shape: Transformer, images: int) -> list[Operation]:
    """A block's forward pass, attention fused, everything between two products in one pass over memory."""
    d, r, rows = shape.width, shape.mlp_ratio, images * shape.tokens

    def product(inputs: float, outputs: float) -> Operation:
        size = BFLOAT16 * rows * (inputs + outputs)
        return Operation(2 * rows * inputs * outputs, size, inputs * outputs)

    def elementwise(features: float) -> Operation:
        return Operation(0.0, BFLOAT16 * rows * features, again=True)

    return [
        Operation(12 * images * d**2, BFLOAT16 * images * 7 * d, 6 * d**2),
        elementwise(2 * d),
        product(d, 3 * d),
        Operation(4 * rows * shape.tokens * d, BFLOAT16 * rows * 4 * d, again=True),
        product(d, d),
        elementwise(4 * d),  # gate, residual, norm: two read, two written
        product(d, r * d),
        elementwise(2 * r * d),
        product(r * d, d),
        elementwise(3 * d),
    ]


def _timed(hardware: Hardware, flops: float, size: float) -> Seconds:
    arithmetic = flops / (hardware.flops * hardware.products_reached)
    moved = size / (hardware.memory_rate * hardware.memory_reached)
    return Seconds(products=arithmetic) if arithmetic > moved else Seconds(memory=moved)


def step_seconds(setting: Setting) -> Seconds:
    """Seconds of a step on each device.

    The backward pass is counted as twice the forward pass. Patches, embeddings and head are left out, and so are
    latencies, launches, data, coupling and checkpoints.
    """
    shape, hardware, whole = setting.shape, setting.hardware, parameters(setting.shape)
    images = setting.images // setting.num_microbatches
    pieces = []
    for operation in operations(shape, images):
        forward = _timed(hardware, operation.flops, operation.bytes + BFLOAT16 * operation.weights)
        backward = _timed(
            hardware, 2 * operation.flops, 2 * operation.bytes + (BFLOAT16 + FLOAT) * operation.weights
        )
        again = setting.kept == INPUTS or (setting.kept != ALL and operation.again)
        pieces += [forward] * (1 + setting.gradual + again) + [backward]
    times = setting.num_microbatches * shape.depth
    accumulated = 3 * FLOAT * whole * setting.num_microbatches * (setting.num_microbatches > 1)
    passes = _timed(hardware, 0.0, UPDATE_TRAFFIC * setting.part + CAST_TRAFFIC * whole + accumulated)
    return Seconds(
        times * sum(piece.products for piece in pieces),
        times * sum(piece.memory for piece in pieces) + passes.memory,
        traffic(setting).seconds(hardware),
    )


def images_per_second(setting: Setting) -> tuple[float, float]:
    """Of all devices together: with no collective hidden, with as many as the work can hide."""
    seconds, images = step_seconds(setting), setting.images * setting.num_devices
    return images / seconds.shown, images / seconds.hidden


def share_of_peak(setting: Setting) -> float:
    """Operations that the method needs (recomputed ones not counted) over those at the peak rate, none hidden."""
    needed = (3 + setting.gradual) * forward_flops(setting.shape) * setting.images
    return needed / (step_seconds(setting).shown * setting.hardware.flops)
