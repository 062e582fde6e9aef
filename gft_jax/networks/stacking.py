"""Parameters of a transformer between its two forms: a subtree for each block, and all blocks in one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gft_jax.types import Params

_BLOCKS = "blocks"


def stacked(params: Params) -> dict[str, Any]:
    """Parameters of `SiT` with ``scan=True`` from those of ``scan=False``: the blocks along a leading axis.

    Raises:
        ValueError: for parameters without the subtrees ``blocks_0`` to ``blocks_<depth - 1>``.
    """
    tree = _mapping(params)
    blocks = [name for name in tree if name.startswith(f"{_BLOCKS}_")]
    if not blocks or set(blocks) != {f"{_BLOCKS}_{i}" for i in range(len(blocks))}:
        raise ValueError(
            f"parameters with {_BLOCKS}_0, {_BLOCKS}_1, ... are stacked, got {', '.join(map(str, tree)) or 'none'}."
        )
    in_order = [tree[f"{_BLOCKS}_{i}"] for i in range(len(blocks))]
    rest = {name: subtree for name, subtree in tree.items() if name not in blocks}
    return rest | {_BLOCKS: jax.tree.map(lambda *leaves: jnp.stack(leaves), *in_order)}


def unstacked(params: Params) -> dict[str, Any]:
    """Parameters of `SiT` with ``scan=False`` from those of ``scan=True``; undoes `stacked`.

    Raises:
        ValueError: for parameters without the subtree ``blocks``, or whose leaves there differ in length.
    """
    tree = _mapping(params)
    if _BLOCKS not in tree:
        raise ValueError(
            f"parameters with {_BLOCKS} are unstacked, got {', '.join(map(str, tree)) or 'none'}."
        )
    depths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree[_BLOCKS])}
    if len(depths) != 1 or () in depths:
        raise ValueError(
            f"the leaves of {_BLOCKS} must have one length along their first axis, got {depths}."
        )
    ((depth,),) = depths
    rest = {name: subtree for name, subtree in tree.items() if name != _BLOCKS}
    return rest | {
        f"{_BLOCKS}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree[_BLOCKS]) for i in range(depth)
    }


def _mapping(params: Params) -> Mapping[str, Any]:
    if not isinstance(params, Mapping):
        raise ValueError(f"parameters of SiT are a dict by name, got {type(params).__name__}.")
    return params
