"""The mesh of devices, and which part of an array each of them holds."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from gft_jax.sampling.arguments import checked_count

DATA, FSDP = "data", "fsdp"
"""The axes of a mesh: rows of a batch are split over both, parameters over the second."""

ShardingRule = Callable[[str, tuple[int, ...]], PartitionSpec]
"""``(name, shape)`` -> how an array is split over the axes of the mesh. The name is the path of the leaf in its pytree,
such as ``.params['first']['kernel']``, or ``.opt_state[0].mu['first']['kernel']`` of its first moment."""


def mesh(*, data: int | None = None, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices in ``data`` groups of ``fsdp``: a group holds one copy of the parameters, each device a part of it.

    ``fsdp=1`` is plain data parallelism. With ``fsdp = n`` a device holds 1 / n of parameters, base, optimiser state
    and average, and the layers are gathered as they are needed; it pays where a copy does not fit, and is fastest
    within the devices of one host.

    Args:
        data: number of groups; default as many as the devices make.
        fsdp: devices of a group.
        devices: default all devices of all processes.

    Raises:
        ValueError: if the devices are not ``data * fsdp``.
    """
    devices = jax.devices() if devices is None else list(devices)
    fsdp = checked_count(FSDP, fsdp)
    if data is None:
        if len(devices) % fsdp:
            raise ValueError(
                f"{len(devices)} devices do not divide into groups of fsdp={fsdp}: use a divisor of {len(devices)}, or "
                "give devices"
            )
        data = len(devices) // fsdp
    data = checked_count(DATA, data)
    if data * fsdp != len(devices):
        raise ValueError(
            f"a mesh of data={data} times fsdp={fsdp} takes {data * fsdp} devices, and there are {len(devices)}: use "
            f"numbers with the product {len(devices)}, or give devices"
        )
    # Explicit axes, the default of make_mesh, would refuse operations that objectives and couplings are made of.
    return jax.make_mesh((data, fsdp), (DATA, FSDP), (AxisType.Auto, AxisType.Auto), devices=devices)


def over_fsdp(num_parts: int, *, min_size: int = 4096) -> ShardingRule:
    """Splits an array over "fsdp" along its largest dimension that divides evenly, the first of equals.

    Arrays of less than ``min_size`` entries, and those without such a dimension, are whole on every device: to
    gather them would take longer than it saves. The name plays no part, so that whatever has the shape of a parameter
    (its moments, its average, that of the base) is split as this is.

    Args:
        num_parts: size of the axis "fsdp".
        min_size: fewest entries of an array that is split.

    Raises:
        ValueError: for a number below one.
    """
    num_parts, min_size = checked_count("num_parts", num_parts), checked_count("min_size", min_size)

    def rule(name: str, shape: tuple[int, ...]) -> PartitionSpec:
        by_length = sorted(range(len(shape)), key=lambda axis: -shape[axis])
        return split_along(by_length, shape, num_parts, min_size)

    return rule


def split_along(
    preferred: Sequence[int], shape: tuple[int, ...], num_parts: int, min_size: int
) -> PartitionSpec:
    """Over "fsdp" along the first of the preferred axes that divides; whole, if none does or the array is small."""
    fitting = [axis for axis in preferred if shape[axis] % num_parts == 0]
    if not fitting or num_parts == 1 or math.prod(shape) < min_size:
        return PartitionSpec()
    return PartitionSpec(*[None] * fitting[0], FSDP)
