"""Calls of host functions inside jit."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

_BLOCK_BYTES = 98_304
"""Size of an argument of a callback: 100 kB and more are copied by another thread."""


def call_on_host(function: Callable[..., Any], result: Any, *arguments: Any) -> Any:
    """``function`` of NumPy arrays, called on the host from inside jit; row by row under vmap.

    As ``jax.pure_callback``, but large arguments travel in blocks. JAX copies the arguments of a callback, and leaves
    large ones to the threads that run its programs: where callbacks hold the last of them, as on a machine of one
    core, they would wait for a copy that waits for them (https://github.com/jax-ml/jax/issues/24255).

    Args:
        function: ``(*arguments)`` -> NumPy arrays; pure. It must not call JAX.
        result: `jax.ShapeDtypeStruct` of what it returns, or a pytree of them.
        arguments: pytrees of arrays. Compilation takes 20 to 30 ms for each 100 kB of them.
    """
    leaves, structure = jax.tree.flatten(arguments)
    leaves = [jax.numpy.asarray(leaf) for leaf in leaves]

    def call(blocks_of_leaves: list[list[Array]]) -> Any:
        whole = [
            np.concatenate([np.asarray(block).reshape(-1) for block in blocks]).reshape(leaf.shape)
            for blocks, leaf in zip(blocks_of_leaves, leaves, strict=True)
        ]
        return function(*jax.tree.unflatten(structure, whole))

    return jax.pure_callback(call, result, [_blocks(leaf) for leaf in leaves], vmap_method="sequential")


def _blocks(leaf: Array) -> list[Array]:
    # Else each block would be a program that computes the leaf.
    flat = jax.lax.optimization_barrier(leaf.reshape(-1))
    size = _BLOCK_BYTES // leaf.dtype.itemsize
    return [flat[first : first + size] for first in range(0, max(leaf.size, 1), size)]
