"""The checkpoints of one run, by training step."""

import json
import os
import pathlib
import shutil
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from gft_jax.checkpoints.files import (
    Unreadable,
    has_marks,
    is_as_written,
    reading,
    set_aside,
    write_checksums,
)
from gft_jax.checkpoints.leaves import (
    ABSTRACT,
    CONCRETE,
    Leaf,
    check_same,
    flatten,
    is_stored,
    name_of,
    target_of,
    without_content,
)

_TRASH = "_deleted"
"""Old steps are moved here before they are deleted, so that no kill leaves half of one under its number."""


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
        self._saving: int | None = None
        self._intact: set[int] = set()
        self._unreadable: set[int] = set()

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
        leaves, values, _ = flatten(state, CONCRETE)
        arrays = {
            name_of(i, leaf): np.asarray(value) if isinstance(value, np.generic) else value
            for i, (leaf, value) in enumerate(zip(leaves, values, strict=True))
            if is_stored(leaf)
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
        self._saving = step
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            info=ocp.args.JsonSave(info),
        )
        # Without force, Orbax skips what it holds to be superfluous, and says so by returning False alone.
        self._manager.save(step, args=arguments, force=True)

    def latest_step(self) -> int | None:
        """Newest step that was written in full and is still as it was written, or None.

        A step that another object wrote is read in full for its checksums when it is first looked at.
        """
        self.wait()
        return max(self._steps(complete=True), default=None)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Steps on disk that were cut short, half deleted or damaged, and are passed over.

        The first save sets them aside, as ``<step>.incomplete-<time>``.
        """
        return tuple(sorted(self._steps(complete=False)))

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """State and metadata of a step, bit for bit.

        Args:
            like: the tree to restore, as arrays or as `jax.ShapeDtypeStruct` (from `jax.eval_shape`). Where it holds
                a numpy array, numpy is restored; all else is put on the default device.
            step: the step to restore; by default the newest one that can be restored.

        Raises:
            FileNotFoundError: there is no such step, or it was cut short or damaged.
            Unreadable: the step that was asked for cannot be restored; by default it is passed over, as `skipped` says.
            ValueError: the tree differs from the one on disk in structure, shapes or dtypes; all differences are named.
        """
        self.wait()
        if step is not None:
            if self._is_complete(step):
                return self._read(step, like)
        else:
            for newest in sorted(self._steps(complete=True), reverse=True):
                try:
                    return self._read(newest, like)
                except Unreadable:
                    self._unreadable.add(newest)
                    self._intact.discard(newest)
        wanted = "checkpoint" if step is None else f"complete checkpoint of step {step}"
        raise FileNotFoundError(f"no {wanted} in {self._directory}; incomplete steps: {list(self.skipped)}")

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
        path = self._directory / str(step)
        if step in self._unreadable or not has_marks(path):
            return False
        if step not in self._intact and is_as_written(path):
            self._intact.add(step)
        return step in self._intact

    def _read(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        path = self._directory / str(step)
        leaves, values, treedef = flatten(like, ABSTRACT)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            with reading(path):
                info = reader.restore(path, args=ocp.args.Composite(info=ocp.args.JsonRestore())).info
                on_disk = [Leaf(*leaf) for leaf in info["leaves"]]
            check_same(path, on_disk, leaves)
            names = {leaf.path: name_of(i, leaf) for i, leaf in enumerate(on_disk)}
            targets = {
                names[leaf.path]: target_of(leaf, value)
                for leaf, value in zip(leaves, values, strict=True)
                if is_stored(leaf)
            }
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
            with reading(path):
                arrays = reader.restore(path, args=arguments).state
        restored = [
            arrays[names[leaf.path]] if is_stored(leaf) else without_content(leaf, value)
            for leaf, value in zip(leaves, values, strict=True)
        ]
        return jax.tree.unflatten(treedef, restored), info["metadata"]

    def _open_for_writing(self) -> ocp.CheckpointManager:
        for step in self.skipped:
            set_aside(self._directory / str(step))
        self._unreadable.clear()
        self._empty_trash()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._max_to_keep,
            todelete_subdir=_TRASH,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _write_checksums(self) -> None:
        """Called by Orbax in its thread: all files are written, and the step has not got its number yet."""
        for path in self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            write_checksums(path)
            # Read just now: the next save need not read it again.
            self._intact.add(int(path.name.partition(".")[0]))

    def _empty_trash(self) -> None:
        shutil.rmtree(self._directory / _TRASH, ignore_errors=True)
