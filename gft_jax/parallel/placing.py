"""Arrays put where a sharding says, also where some of its devices belong to other processes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Sharding


def put(tree: Any, shardings: Any, may_alias: bool = False) -> Any:
    """The pytree with every leaf where its sharding says; a constraint where a leaf is traced.

    Where the sharding takes in devices of other processes, all processes call this together, and what they give is
    the same in each.

    Args:
        tree: arrays, of this process or already spread over several.
        shardings: one for all leaves, or a pytree of them.
        may_alias: whether what is there already need not be copied.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda leaf, sharding: _put(leaf, sharding, may_alias), tree, shardings)


def _put(leaf: Any, sharding: Sharding, may_alias: bool) -> Any:
    if isinstance(leaf, Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
    of_others = not sharding.is_fully_addressable
    if of_others and not (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                _put(jax.random.key_data(leaf), sharding, may_alias), impl=jax.random.key_impl(leaf)
            )
        # device_put would compare the values of all processes, leaf by leaf.
        host = np.asarray(leaf, jnp.result_type(leaf))
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    if not may_alias and isinstance(leaf, jax.Array) and leaf.sharding != sharding:
        # Where a device keeps what it has, device_put shares the buffer, even with may_alias=False: a step that is
        # given the one would delete the other.
        leaf = jnp.array(leaf, copy=True)
    return jax.device_put(leaf, sharding, may_alias=may_alias)


def fetched(tree: Any, replicated: Sharding) -> Any:
    """A copy of the pytree on the first of the devices that are of this process. All processes call it together."""

    def first(leaf: jax.Array) -> jax.Array:
        # A mesh may have its devices in another order; what else the process holds is on the first of its own.
        return min(leaf.addressable_shards, key=lambda shard: shard.device.id).data

    return jax.tree.map(first, _copier(replicated)(tree))


@functools.lru_cache(maxsize=8)
def _copier(sharding: Sharding) -> Callable[[Any], Any]:
    def copied(tree: Any) -> Any:
        # device_put may share buffers, even with may_alias=False.
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    return jax.jit(copied, out_shardings=sharding)
