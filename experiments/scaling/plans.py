"""The fastest way to take a step that fits into memory."""

from collections.abc import Iterator

from experiments.scaling.hardware import DEVICES_PER_NODE, Hardware
from experiments.scaling.step_time import images_per_second, step_seconds
from experiments.scaling.training import Setting, memory, traffic
from experiments.scaling.transformer import ALL, INPUTS, PRODUCTS, Transformer, check


def fits(setting: Setting) -> bool:
    """Whether a device has the memory."""
    return memory(setting).total <= setting.hardware.memory * setting.hardware.memory_usable


def options(
    shape: Transformer,
    hardware: Hardware,
    num_devices: int,
    images: int,
    gradual: bool,
    by_layer: bool = False,
) -> Iterator[Setting]:
    """All settings of a step: copies or parts of a node or of all devices, what is kept, halvings into micro-batches.

    Args:
        shape: the model.
        hardware: each device.
        num_devices: number of devices.
        images: rows of a batch, on all devices together; a multiple of their number.
        gradual: the method.
        by_layer: whether parameters are split and gathered block by block.

    Raises:
        ValueError: for rows that do not divide over the devices, or a shape that is no transformer.
    """
    check(shape)
    if images < num_devices or images % num_devices:
        raise ValueError(f"{images} images do not divide over {num_devices} devices: use a multiple")
    on_device = images // num_devices
    everywhere = Setting(shape, hardware, num_devices, 1, on_device, 1, ALL, gradual, by_layer=by_layer)
    for fsdp in sorted({1, min(DEVICES_PER_NODE, num_devices), num_devices} - ({1} if by_layer else set())):
        for kept in (ALL, PRODUCTS, INPUTS):
            num_microbatches = 1
            while on_device % num_microbatches == 0:
                yield everywhere._replace(fsdp=fsdp, kept=kept, num_microbatches=num_microbatches)
                num_microbatches *= 2


def best(
    shape: Transformer,
    hardware: Hardware,
    num_devices: int,
    images: int,
    gradual: bool,
    by_layer: bool = False,
) -> Setting | None:
    """The setting with most images a second, none of its collectives hidden, of those that fit; None if none does."""
    every = options(shape, hardware, num_devices, images, gradual, by_layer)
    fitting = [each for each in every if fits(each)]
    return max(fitting, key=lambda each: images_per_second(each)[0], default=None)


def limit(setting: Setting) -> str:
    """What most of a step's time goes to: arithmetic, memory, NVLink or network."""
    seconds, sent = step_seconds(setting), traffic(setting)
    named = {
        "arithmetic": seconds.products,
        "memory": seconds.memory,
        "NVLink": sent._replace(network=0.0).seconds(setting.hardware),
        "network": sent._replace(nvlink=0.0).seconds(setting.hardware),
    }
    return max(named, key=lambda name: named[name])
