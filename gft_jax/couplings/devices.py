"""Couplings over devices: one plan over the rows of all devices, or a plan for each device's share of them.

One plan has more partners to choose from, so that its paths are shorter, and it does not depend on the number of
devices. Three ways to it:

* `gft_jax.pairing.batches` pairs the whole batch before `gft_jax.parallel` splits it: nothing to do. Over several
  processes: `gft_jax.pairing.share_of`.
* Inside ``pmap`` or ``shard_map``, where each device holds its share of the rows: `over_axis`.
* Under ``jit``, on arrays whose rows are sharded over a mesh: every coupling as it is, since a sharding changes no
  result. `exact` gathers the costs on one device, which asks the host; XLA may log there that it replicates them
  ("involuntary full rematerialization").

The plans of the shares are those of `per_shard`, and of streams over several processes with a ``share``.
"""

import functools
import numbers
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, Shaped

from gft_jax.conditions import check_rows
from gft_jax.couplings.base import Coupling, Pairing, apply, check_ends


def per_shard(coupling: Coupling, num_shards: int) -> Coupling:
    """Pairs each of ``num_shards`` contiguous equal shares of the rows within itself: local plans.

    Share k is paired as ``coupling(fold_in(key, k), ...)`` pairs its rows alone; indices are those of all rows. For
    comparison with a global plan, and where that one is too dear: the cost matrices have ``rows^2 / num_shards``
    entries together.

    The plan is block diagonal, its blocks the plans of the shares divided by ``num_shards``, and all fields are its
    own: ``cost``, ``marginal_error`` and ``entropy`` are means over the shares, which all weigh the same, and
    ``converged`` means that all are. Row weights have mean 1 in each share, so that an outlier weighs by comparison
    with its share alone. Bias: the cost is that of batches of ``rows / num_shards`` rows, above that of a global plan.

    Under ``jit``, with the rows sharded over ``num_shards`` devices, each device solves its own share and no row
    travels, but single numbers do, such as whether all shares have converged (and with `exact` the costs, to the one
    device that asks the host). `apply` then gathers x0, since it cannot know that all partners are near. Where not
    even this is wanted, pair inside ``pmap`` or ``shard_map`` by the inner coupling itself:
    ``coupling(fold_in(key, axis_index(axis_name)), ...)`` is the same pairing, in indices of the device's rows.

    Args:
        coupling: pairs a share. One that respects conditions goes inside: ``per_shard(respecting_labels(exact()), 4)``.
        num_shards: number of shares, >= 1, a divisor of the number of rows.

    Raises:
        ValueError: for a number of shares below one; when called, for rows that do not divide evenly, ends of different
            shapes, conditions of another number of rows, and what the coupling raises for a share. `exact` sees a
            share as inside jit: ends that are not finite come back as ``converged = False``.
    """
    if not isinstance(num_shards, numbers.Integral) or num_shards < 1:
        raise ValueError(f"num_shards must be an integer >= 1, got {num_shards}")
    # A pytree, like the coupling inside: its arrays are the leaves of this one.
    return jax.tree_util.Partial(functools.partial(_pair_shares, num_shards), coupling)


def _pair_shares(
    num_shards: int,
    coupling: Coupling,
    key: Key[Array, ""],
    x0: Shaped[Array | np.ndarray, "..."],
    x1: Shaped[Array | np.ndarray, "..."],
    cond: Any = None,
    source_cond: Any = None,
) -> Pairing:
    check_ends(x0, x1)
    rows = len(x0)
    if rows % num_shards:
        raise ValueError(
            f"{rows} rows do not divide over {num_shards} shares: use a multiple of {num_shards} rows, or another "
            "num_shards"
        )
    check_rows("cond", cond, rows)
    check_rows("source_cond", source_cond, rows)

    def split(leaf: Array | np.ndarray) -> Array:
        return jnp.asarray(leaf).reshape(num_shards, rows // num_shards, *leaf.shape[1:])

    keys = jax.vmap(lambda share: jax.random.fold_in(key, share))(jnp.arange(num_shards))
    shares = jax.vmap(coupling)(keys, *jax.tree.map(split, (x0, x1, cond, source_cond)))
    first = jnp.arange(num_shards, dtype=jnp.int32)[:, None] * (rows // num_shards)
    return Pairing(
        source_index=(shares.source_index + first).reshape(rows),
        target_index=(shares.target_index + first).reshape(rows),
        weight=None if shares.weight is None else shares.weight.reshape(rows),
        converged=jnp.all(shares.converged),
        cost=jnp.mean(shares.cost),
        marginal_error=jnp.mean(shares.marginal_error),
        entropy=jnp.mean(shares.entropy),
    )


def over_axis(
    coupling: Coupling, axis_name: Hashable
) -> Callable[..., tuple[Pairing, tuple[Array, Array, Any, Any]]]:
    """Pairs the rows of all devices by one plan, inside ``pmap`` or ``shard_map``: each device brings its share.

    The function returned is ``(key, x0, x1, cond=None, source_cond=None) -> (pairing, rows)``, called on each device
    with its own rows. They are gathered, the first device pairs them, with its key, and all take its pairing. So
    the plan is that of a single device on all rows, in the order of the devices, and every row is used as that
    pairing says, whatever keys the other devices hold, and even if they would round otherwise; `exact` asks the host
    once.

    * ``rows`` are ``(x0, x1, cond, source_cond)``, those of this device's pairs, moved as by `apply`: the pairs ``d
      local`` to ``(d + 1) local - 1`` on device d of ``local`` rows each. An x0 may come from any device.
    * ``pairing`` has the indices and weights of these pairs; the indices count the rows of all devices, and the
      weights have mean 1 over all of them. Its scalars are those of the whole plan, the same on every device.

    Gradients flow through ``rows``, back to the device that they come from, and not through the pairing.

    Args:
        coupling: pairs the rows of all devices.
        axis_name: the axis of ``pmap`` or ``shard_map`` over which the rows are spread, or a tuple of axes.

    Raises:
        ValueError: (when called) for ends of different shapes, conditions of another number of rows, and what the
            coupling raises inside jit.
        TypeError: (when called) inside ``shard_map``, unless it has ``check_vma=False``: neither ott's loops nor the
            first device's branch say on which axes their values vary.
        NameError: (when called) where there is no such axis.
    """

    def couple(
        key: Key[Array, ""],
        x0: Shaped[Array | np.ndarray, "..."],
        x1: Shaped[Array | np.ndarray, "..."],
        cond: Any = None,
        source_cond: Any = None,
    ) -> tuple[Pairing, tuple[Array, Array, Any, Any]]:
        check_ends(x0, x1)
        num_local = len(x0)
        check_rows("cond", cond, num_local)
        check_rows("source_cond", source_cond, num_local)
        device = jax.lax.axis_index(axis_name)
        gathered = jax.tree.map(
            lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), (x0, x1, cond, source_cond)
        )

        def solve() -> Pairing:
            pairing = coupling(key, *jax.lax.stop_gradient(gathered))
            return pairing._replace(converged=pairing.converged.astype(jnp.int32))

        def wait() -> Pairing:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(solve))

        # All other devices add zeros: the sum is the pairing of the first.
        try:
            whole: Pairing = jax.lax.psum(jax.lax.cond(device == 0, solve, wait), axis_name)
        except TypeError as error:
            error.add_note("over_axis inside shard_map needs shard_map(..., check_vma=False)")
            raise

        def share(leaf: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(leaf, device * num_local, num_local)

        pairing = whole._replace(
            source_index=share(whole.source_index),
            target_index=share(whole.target_index),
            weight=None if whole.weight is None else share(whole.weight),
            converged=whole.converged.astype(bool),
        )
        return pairing, apply(pairing, *gathered)

    return couple
