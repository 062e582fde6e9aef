"""Checkpoints with Orbax: save a pytree of arrays, restore it bit for bit, never a wrong or a half-written one.

What is on disk, one directory per step, also readable by Orbax alone::

    directory/<step>/state/   the arrays, one flat dict named by position and path, such as "3.params['w']"
    directory/<step>/info/    JSON: path, shape and dtype of every leaf, and the caller's metadata

The leaves are written flat, not as the caller's tree, because Orbax joins the names of a path by dots: in
``{"a.b": x, "a": {"b": y}}`` both would be ``a.b``, and one would be restored in place of the other. It also casts
silently where dtypes differ, so they are compared here first (Orbax 0.12.8).
"""

import hashlib
import json
import os
import pathlib
import shutil
import time
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

_COMMIT_MARKS = ("_CHECKPOINT_METADATA", "state/_METADATA", "info/metadata")
"""Written last, removed first or inside what is removed: a step that lacks one is no checkpoint."""

_TRASH = "_deleted"
"""Old steps are moved here before they are deleted, so that no kill leaves half of one under its number."""

_CONCRETE = (jax.Array, np.ndarray, np.generic)
_ABSTRACT = (*_CONCRETE, jax.ShapeDtypeStruct)
_DTYPES = (jnp.number, jnp.bool_, jax.dtypes.prng_key)


class _Leaf(NamedTuple):
    """Where a leaf is in its tree, and what it is; an empty container is a leaf without a shape."""

    path: str
    shape: list[int] | None
    dtype: str

    def __str__(self) -> str:
        return f"empty {self.dtype}" if self.shape is None else f"{self.dtype}{self.shape}"


class Checkpoints:
    """The checkpoints of one run, in one directory, by training step::

        with Checkpoints(directory) as checkpoints:
            if checkpoints.latest_step() is not None:
                state, metadata = checkpoints.restore(state)
            ...
            checkpoints.save(step, state, {"config": ...})

    A directory has one writer at a time, and any number of readers. Nothing is written before the first save.

    Args:
        directory: local, absolute or relative; created by the first save.
        max_to_keep: newest steps to keep, >= 1; None keeps all.

    Raises:
        ValueError: max_to_keep out of range.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_to_keep: int | None = 2):
        if max_to_keep is not None and max_to_keep < 1:
            raise ValueError(f"max_to_keep must be >= 1, or None to keep all steps, got {max_to_keep}")
        self._directory = pathlib.Path(directory).absolute()
        self._max_to_keep = max_to_keep
        self._manager: ocp.CheckpointManager | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save(self, step: int, state: PyTree, metadata: dict[str, Any] | None = None) -> None:
        """Write a step. Returns once the state is copied; the writing goes on in the background until `wait`.

        Args:
            step: training step >= 0, after all steps on disk.
            state: pytree of arrays (jax or numpy, typed keys included), each on one device or replicated.
            metadata: anything that JSON can hold; tuples come back as lists, and keys as strings.

        Raises:
            ValueError: a step that is not after the latest one; a leaf that is not an array of numbers, bools or
                keys; metadata that JSON cannot hold.
        """
        latest = self.latest_step()
        if step < 0 or (latest is not None and step <= latest):
            raise ValueError(
                f"step must be >= 0 and after the latest checkpoint of {self._directory}, got {step} after {latest}; "
                "to start again from an earlier step, save to another directory"
            )
        leaves, values, _ = _flatten(state, _CONCRETE)
        arrays = {
            _name(i, leaf): np.asarray(value) if isinstance(value, np.generic) else value
            for i, (leaf, value) in enumerate(zip(leaves, values, strict=True))
            if _is_stored(leaf)
        }
        if not arrays:
            raise ValueError(
                "the state holds no array (or only arrays of size zero), so there is nothing to save"
            )
        info = {"leaves": leaves, "metadata": {} if metadata is None else metadata}
        try:
            json.dumps(info)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the metadata must be what JSON can hold: {error}") from error
        if self._manager is None:
            self._manager = self._open_for_writing()
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            info=ocp.args.JsonSave(info),
        )
        # Without force, Orbax skips what it holds to be superfluous, and says so by returning False alone.
        self._manager.save(step, args=arguments, force=True)

    def latest_step(self) -> int | None:
        """Newest step that was written in full, or None."""
        self.wait()
        return max(self._steps(complete=True), default=None)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Steps on disk that lack a commit mark (cut short, or half deleted), and are passed over.

        The first save sets them aside, as ``<step>.incomplete-<time>``.
        """
        return tuple(sorted(self._steps(complete=False)))

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """State and metadata of a step, bit for bit.

        Args:
            like: the tree to restore, as arrays or as `jax.ShapeDtypeStruct` (from `jax.eval_shape`). Where it holds
                a numpy array, numpy is restored; all else is put on the default device.
            step: the step to restore; by default the newest one that was written in full.

        Raises:
            FileNotFoundError: there is no such step, or it was not written in full.
            ValueError: the tree differs from the one on disk in structure, shapes or dtypes; all differences are named.
        """
        latest = self.latest_step()
        step = latest if step is None else step
        if step is None or not self._is_complete(step):
            wanted = "checkpoint" if step is None else f"complete checkpoint of step {step}"
            raise FileNotFoundError(
                f"no {wanted} in {self._directory}; incomplete steps: {list(self.skipped)}"
            )
        path = self._directory / str(step)
        leaves, values, treedef = _flatten(like, _ABSTRACT)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            info = reader.restore(path, args=ocp.args.Composite(info=ocp.args.JsonRestore())).info
            on_disk = [_Leaf(*leaf) for leaf in info["leaves"]]
            _check_same(path, on_disk, leaves)
            names = {leaf.path: _name(i, leaf) for i, leaf in enumerate(on_disk)}
            targets = {
                names[leaf.path]: _target(leaf, value)
                for leaf, value in zip(leaves, values, strict=True)
                if _is_stored(leaf)
            }
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
            arrays = reader.restore(path, args=arguments).state
        restored = [
            arrays[names[leaf.path]] if _is_stored(leaf) else _without_content(leaf, value)
            for leaf, value in zip(leaves, values, strict=True)
        ]
        return jax.tree.unflatten(treedef, restored), info["metadata"]

    def wait(self) -> None:
        """Return when the last save is on disk; raises what went wrong with it."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._empty_trash()

    def close(self) -> None:
        """Finish the last save and end the background threads."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            manager.close()
            self._empty_trash()

    def _steps(self, *, complete: bool) -> list[int]:
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir() if path.name.isdecimal()]
        steps = [int(name) for name in names if name == str(int(name))]  # not 007, which is none of ours
        return [step for step in steps if self._is_complete(step) == complete]

    def _is_complete(self, step: int) -> bool:
        return all((self._directory / str(step) / mark).exists() for mark in _COMMIT_MARKS)

    def _open_for_writing(self) -> ocp.CheckpointManager:
        for step in self.skipped:
            path = self._directory / str(step)
            path.rename(path.with_name(f"{step}.incomplete-{time.time_ns()}"))
        self._empty_trash()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._max_to_keep, todelete_subdir=_TRASH, cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _empty_trash(self) -> None:
        shutil.rmtree(self._directory / _TRASH, ignore_errors=True)


def save_params(directory: str | os.PathLike[str], params: PyTree) -> None:
    """Write one tree once, such as the frozen base parameters of a run or its final ones.

    Args:
        directory: a directory for it alone; written in full or not at all.
        params: pytree of arrays, as for `Checkpoints.save`.

    Raises:
        FileExistsError: the directory holds a checkpoint already.
        ValueError: as `Checkpoints.save`.
    """
    target = pathlib.Path(directory).absolute()
    if has_params(target):
        raise FileExistsError(
            f"{directory} holds a checkpoint already; save to another directory, or delete it"
        )
    # Orbax makes the directory before its content: a kill in between would leave one that looks finished.
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    with Checkpoints(partial) as checkpoints:
        checkpoints.save(0, params)
    os.replace(partial, target)


def has_params(directory: str | os.PathLike[str]) -> bool:
    """Whether `save_params` has written this directory; an empty or cut-short one counts as not written."""
    with Checkpoints(directory) as checkpoints:
        return checkpoints.latest_step() == 0


def load_params(directory: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Tree written by `save_params`, bit for bit; ``like`` and what is raised are those of `Checkpoints.restore`."""
    with Checkpoints(directory) as checkpoints:
        params, _ = checkpoints.restore(like, step=0)
    return params


def fingerprint(tree: PyTree) -> str:
    """SHA-256 in hexadecimal over paths, shapes, dtypes and bytes of all leaves: names parameters by their content.

    Raises:
        ValueError: a leaf that is not an array of numbers, bools or keys.
    """
    digest = hashlib.sha256()
    leaves, values, _ = _flatten(tree, _CONCRETE)
    for leaf, value in zip(leaves, values, strict=True):
        digest.update(json.dumps(leaf).encode())
        if leaf.shape is not None:
            data = jax.random.key_data(value) if _is_key(value.dtype) else value
            digest.update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_empty(node: Any) -> bool:
    """Whether it is a container without content: None, (), {}, ..."""
    structure = jax.tree.structure(node)
    return structure.num_leaves == 0 and structure.num_nodes == 1


def _flatten(tree: PyTree, kinds: tuple[type, ...]) -> tuple[list[_Leaf], list[Any], Any]:
    """Leaves described, their values, and the structure; empty containers count as leaves."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_empty)
    leaves, values = [], [value for _, value in flat]
    for path, value in flat:
        where = jax.tree_util.keystr(path)
        if _is_empty(value):
            leaves.append(_Leaf(where, None, type(value).__name__))
            continue
        dtype = value.dtype if isinstance(value, kinds) else None
        if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in _DTYPES):
            raise ValueError(
                f"leaf {where or 'at the root'} must be an array of numbers, bools or typed keys, got "
                f"{type(value).__name__}{'' if dtype is None else f' of {dtype}'}; make it one with jnp.asarray, "
                "or keep it in the metadata"
            )
        leaves.append(_Leaf(where, list(value.shape), str(dtype)))
    return leaves, values, treedef


def _name(position: int, leaf: _Leaf) -> str:
    return f"{position}{leaf.path}"


def _is_stored(leaf: _Leaf) -> bool:
    """Whether Orbax holds it: it refuses arrays of size zero, whose shape and dtype say all."""
    return leaf.shape is not None and 0 not in leaf.shape


def _without_content(leaf: _Leaf, value: Any) -> Any:
    if leaf.shape is None:
        return value
    return (np if isinstance(value, np.ndarray) else jnp).zeros(leaf.shape, value.dtype)


def _target(leaf: _Leaf, value: Any) -> Any:
    """What Orbax is to restore: numpy, or a jax array on the default device."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if not _is_key(value.dtype) and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise ValueError(f"restoring {leaf.path or 'the root'} as {leaf} needs jax_enable_x64")
    (device,) = jnp.zeros(()).devices()
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)


def _check_same(path: pathlib.Path, on_disk: list[_Leaf], wanted: list[_Leaf]) -> None:
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
