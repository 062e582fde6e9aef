"""The leaves of a tree by path, shape and dtype: what is stored, what is compared, and a name for the content."""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

CONCRETE = (jax.Array, np.ndarray, np.generic)
ABSTRACT = (*CONCRETE, jax.ShapeDtypeStruct)
_DTYPES = (jnp.number, jnp.bool_, jax.dtypes.prng_key)


class Leaf(NamedTuple):
    """Where a leaf is in its tree, and what it is; an empty container is a leaf without a shape."""

    path: str
    shape: list[int] | None
    dtype: str

    def __str__(self) -> str:
        return f"empty {self.dtype}" if self.shape is None else f"{self.dtype}{self.shape}"


def fingerprint(tree: PyTree) -> str:
    """SHA-256 in hexadecimal over paths, shapes, dtypes and bytes of all leaves: names parameters by their content.

    Raises:
        ValueError: a leaf that is not an array of numbers, bools or keys.
    """
    digest = hashlib.sha256()
    leaves, values, _ = flatten(tree, CONCRETE)
    for leaf, value in zip(leaves, values, strict=True):
        digest.update(json.dumps(leaf).encode())
        if leaf.shape is not None:
            data = jax.random.key_data(value) if is_key(value.dtype) else value
            digest.update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def is_key(dtype: Any) -> bool:
    """Whether it is the dtype of typed keys."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_empty(node: Any) -> bool:
    """Whether it is a container without content: None, (), {}, ..."""
    structure = jax.tree.structure(node)
    return structure.num_leaves == 0 and structure.num_nodes == 1


def flatten(tree: PyTree, kinds: tuple[type, ...]) -> tuple[list[Leaf], list[Any], Any]:
    """Leaves described, their values, and the structure; empty containers count as leaves."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_empty)
    leaves, values = [], [value for _, value in flat]
    for path, value in flat:
        where = jax.tree_util.keystr(path)
        if _is_empty(value):
            leaves.append(Leaf(where, None, type(value).__name__))
            continue
        dtype = value.dtype if isinstance(value, kinds) else None
        if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in _DTYPES):
            raise ValueError(
                f"leaf {where or 'at the root'} must be an array of numbers, bools or typed keys, got "
                f"{type(value).__name__}{'' if dtype is None else f' of {dtype}'}; make it one with jnp.asarray, "
                "or keep it in the metadata"
            )
        leaves.append(Leaf(where, list(value.shape), str(dtype)))
    return leaves, values, treedef


def name_of(position: int, leaf: Leaf) -> str:
    """What the leaf is called on disk: by its position, too, as two leaves may have one path."""
    return f"{position}{leaf.path}"


def is_stored(leaf: Leaf) -> bool:
    """Whether Orbax holds it: it refuses arrays of size zero, whose shape and dtype say all."""
    return leaf.shape is not None and 0 not in leaf.shape


def without_content(leaf: Leaf, value: Any) -> Any:
    """The leaf where Orbax holds none of it: an empty container, or an array of size zero."""
    if leaf.shape is None:
        return value
    if isinstance(value, np.ndarray):
        return np.zeros(leaf.shape, value.dtype)
    return jax.device_put(jnp.zeros(leaf.shape, value.dtype), _sharding_of(leaf, value))


def target_of(leaf: Leaf, value: Any) -> Any:
    """What Orbax is to restore: numpy, or a jax array where the given one is.

    Raises:
        ValueError: a dtype or a placement that cannot be had.
    """
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if not is_key(value.dtype) and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise ValueError(f"restoring {leaf.path or 'the root'} as {leaf} needs jax_enable_x64")
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=_sharding_of(leaf, value))


def _sharding_of(leaf: Leaf, value: Any) -> jax.sharding.Sharding:
    """Where the leaf is or, if that is not said, the default device."""
    sharding = value.sharding
    # Shapes from `jax.eval_shape` may know the axes of a mesh, and none of its devices.
    if sharding is None or isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        return jax.sharding.SingleDeviceSharding(jnp.zeros(()).devices().pop())
    try:
        sharding.shard_shape(value.shape)
    except ValueError as error:
        raise ValueError(
            f"{leaf.path or 'the root'}, {leaf}, cannot be restored as it is to be spread, {sharding}: {error}"
        ) from error
    return sharding


def check_same(path: pathlib.Path, on_disk: list[Leaf], wanted: list[Leaf]) -> None:
    """Refuses a tree that is not the one on disk.

    Raises:
        ValueError: naming every leaf that differs.
    """
    found, asked = {leaf.path: leaf for leaf in on_disk}, {leaf.path: leaf for leaf in wanted}
    differences = [
        f"  {where or 'the root'}: {found.get(where, 'nothing')} on disk, {asked.get(where, 'nothing')} asked for"
        for where in dict.fromkeys([*asked, *found])
        if found.get(where) != asked.get(where)
    ]
    if differences:
        raise ValueError(
            "\n".join([f"the checkpoint {path} does not fit the tree to restore:", *differences])
        )
