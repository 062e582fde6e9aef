"""Rows of a batch: whether they divide over the devices, and how they are spread over a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gft_jax.types import Batch


def check_divides(batch: Batch, num_devices: int, axis: int) -> None:
    """Refuses a batch whose rows do not divide evenly over devices.

    Args:
        batch: the rows of this process.
        num_devices: devices of this process.
        axis: the axis of the rows; 1 where batches are stacked.

    Raises:
        ValueError: for rows that do not divide evenly over the devices, or a leaf with other rows than x0.
    """
    num_rows = batch.x0.shape[axis]
    if num_rows % num_devices:
        raise ValueError(
            f"a batch of {num_rows} rows does not divide over {num_devices} devices: "
            f"use a multiple of {num_devices}, or fewer devices"
        )
    leading = batch.x0.shape[: axis + 1]
    if all(leaf.shape[: axis + 1] == leading for leaf in jax.tree.leaves(batch)):
        return  # before paths are named, which takes a while at every step
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if leaf.shape[: axis + 1] != leading:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}, which does not begin like that of x0, "
                f"{batch.x0.shape}: all leaves of a batch have the same rows"
            )


def spread(batch: Batch, mesh: Mesh, axis: int) -> Batch:
    """The rows in equal shares over the devices of a mesh, in its order.

    Args:
        batch: rows of this process; those of all processes, one after another, are the whole batch. A batch that is
            spread over several processes already stays as it is.
        mesh: the devices.
        axis: the axis of the rows; 1 where batches are stacked.

    Raises:
        ValueError: as `check_divides`.
    """
    if isinstance(batch.x0, jax.Array) and not batch.x0.sharding.is_fully_addressable:
        return batch
    check_divides(batch, len(mesh.local_devices), axis)
    rows = NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))
    if rows.is_fully_addressable:
        return jax.device_put(batch, rows)

    def join(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(join(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(rows, np.asarray(leaf))

    return jax.tree.map(join, batch)
