"""The checkpoints of one run, by training step."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from gft_jax.checkpoints.failures import not_saved
from gft_jax.checkpoints.files import (
    Unreadable,
    has_marks,
    is_as_written,
    metrics_of,
    reading,
    set_aside,
    write_checksums,
)
from gft_jax.checkpoints.keeping import Best, Metrics, policy_of
from gft_jax.checkpoints.leaves import (
    ABSTRACT,
    CONCRETE,
    Leaf,
    check_same,
    flatten,
    is_key,
    is_stored,
    name_of,
    target_of,
    without_content,
)
from gft_jax.checkpoints.processes import agreed

_TRASH = "_deleted"
"""Old steps are moved here before they are deleted, so that no kill leaves half of one under its number."""


class Checkpoints:
    """The checkpoints of one run, in one directory, by training step::

        with Checkpoints(directory) as checkpoints:
            if checkpoints.latest_step() is not None:
                state, metadata = checkpoints.restore(state)
            ...
            checkpoints.save(step, state, {"config": ...})

    A directory has one writer at a time, and any number of readers. Nothing is written before the first save. In a
    program of several processes these are one writer together: all of them make the same calls, on a file system that
    they share, and each writes what it alone holds.

    A step is kept if one of the three rules keeps it; another is deleted when the next one has been written in full.

    Args:
        directory: local, absolute or relative; created by the first save.
        keep_latest: newest steps to keep, >= 1; None keeps all.
        keep_best: also keep the best step by this metric; every save then needs it.
        keep_every: also keep steps that are multiples of it, >= 1; None keeps no others.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_latest: int | None = 2,
        keep_best: Best | None = None,
        keep_every: int | None = None,
    ):
        self._directory = pathlib.Path(directory).absolute()
        self._policy = policy_of(keep_latest, keep_best, keep_every)
        self._best = keep_best
        self._manager: ocp.CheckpointManager | None = None
        self._saving: tuple[int, int] | None = None
        """Step and bytes of what is being written."""
        self._intact: set[int] = set()
        self._unreadable: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: PyTree,
        metadata: dict[str, Any] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Write a step. Returns once the state is copied; the writing goes on in the background until `wait`.

        Args:
            step: training step >= 0, after all steps on disk.
            state: pytree of arrays (jax or numpy, typed keys included), each on one device, replicated or spread over
                several; each device's part is written from where it is. Of several processes that hold an array each
                on devices of their own, the first's is written. The arrays may be donated as soon as this returns.
            metadata: anything that JSON can hold; tuples come back as lists, and keys as strings.
            metrics: numbers by name, with the one of ``keep_best`` among them; only with ``keep_best``. A step whose
                metric is not finite is never the best.

        Raises:
            ValueError: a step that is not after the latest one; a leaf that is not an array of numbers, bools or
                keys; metadata that JSON cannot hold; metrics without, or not with, ``keep_best``.
            NotSaved: this step or the one before could not be written.
        """
        latest = self.latest_step()
        if step < 0 or (latest is not None and step <= latest):
            raise ValueError(
                f"step must be >= 0 and after the latest checkpoint of {self._directory}, got {step} after {latest}; "
                "to start again from an earlier step, save to another directory"
            )
        wanted = None if self._best is None else self._best.metric
        if (wanted is None) != (metrics is None) or (metrics is not None and wanted not in metrics):
            raise ValueError(
                f"metrics must hold {wanted!r}, the metric of keep_best, and be left out without keep_best; got "
                f"{None if metrics is None else sorted(metrics)}"
            )
        leaves, values, _ = flatten(state, CONCRETE)
        arrays = {
            name_of(i, leaf): _as_stored(value)
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
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            info=ocp.args.JsonSave(info),
        )
        given = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        self._saving = step, sum(value.nbytes for value in arrays.values())
        with self._writing():
            if self._manager is None:
                self._manager = self._open_for_writing()
            # Without force, Orbax skips what it holds to be superfluous, and says so by returning False alone.
            self._manager.save(step, args=arguments, metrics=given, force=True)

    def latest_step(self) -> int | None:
        """Newest step that was written in full and is still as it was written, or None.

        A step that another object wrote is read in full for its checksums when it is first looked at.
        """
        self.wait()
        return agreed(lambda: max(self._steps(complete=True), default=None))

    def best_step(self) -> int | None:
        """The best by the metric of ``keep_best`` of the steps that `latest_step` could return, or None.

        Raises:
            ValueError: without ``keep_best``.
        """
        best = self._best
        if best is None:
            raise ValueError('no step is the best without a metric: give keep_best, such as Best("w2")')
        self.wait()
        return agreed(
            lambda: best.of(
                {step: metrics_of(self._directory / str(step)) for step in self._steps(complete=True)}
            )
        )

    @property
    def skipped(self) -> tuple[int, ...]:
        """Steps on disk that were cut short, half deleted or damaged, and are passed over.

        The first save sets them aside, as ``<step>.incomplete-<time>``.
        """
        return tuple(agreed(lambda: sorted(self._steps(complete=False))))

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """State and metadata of a step, bit for bit.

        Args:
            like: the tree to restore, as arrays or as `jax.ShapeDtypeStruct` (from `jax.eval_shape`). Where it holds
                a numpy array, numpy is restored; all else is put where the leaf's ``sharding`` says, whatever devices
                it was saved on, or on the default device where there is none.
            step: the step to restore; by default the newest one that can be restored.

        Raises:
            FileNotFoundError: there is no such step, or it was cut short or damaged.
            Unreadable: the step that was asked for cannot be restored; by default it is passed over, as `skipped` says.
            ValueError: the tree differs from the one on disk in structure, shapes or dtypes, all differences being
                named; or an array cannot be spread as its sharding says.
        """
        self.wait()
        if step is not None:
            if agreed(lambda: self._is_complete(step)):
                return self._read(step, like)
        else:
            for newest in agreed(lambda: sorted(self._steps(complete=True), reverse=True)):
                try:
                    return self._read(newest, like)
                except Unreadable:
                    self._unreadable.add(newest)
                    self._intact.discard(newest)
        raise self._missing(step)

    def metadata(self, step: int) -> dict[str, Any]:
        """Metadata of a step alone, for what must be known before its tree can be asked for.

        Raises:
            FileNotFoundError: there is no such step, or it was cut short or damaged.
            Unreadable: it cannot be read.
        """
        self.wait()
        if not agreed(lambda: self._is_complete(step)):
            raise self._missing(step)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return _info(reader, self._directory / str(step))["metadata"]

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
            NotSaved: it could not be written; the steps before it are intact, and the next save can be tried.
        """
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()
            if self._saving is not None:
                # Its checksums were made just now: the next save need not read it again.
                self._intact.add(self._saving[0])
                self._saving = None
            self._empty_trash()

    def close(self) -> None:
        """Finish the last save and end the background threads.

        Raises:
            NotSaved: as `wait`; the threads have ended then, too.
        """
        try:
            self.wait()
        finally:
            self._end_threads()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Names step and reason of a save that failed, and removes what there is of it."""
        try:
            yield
        except Exception as error:
            assert self._saving is not None, "nothing else can fail"
            step, num_bytes = self._saving
            self._saving = None
            with contextlib.suppress(Exception):  # what it says is what is known already
                self._end_threads()
            if jax.process_index() == 0:
                for partial in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(partial, ignore_errors=True)
            last = max(self._steps(complete=True), default=None)
            raise not_saved(self._directory, step, num_bytes, last, error) from error

    def _end_threads(self) -> None:
        if self._manager is not None:
            manager, self._manager = self._manager, None
            manager.close()

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

    def _missing(self, step: int | None) -> FileNotFoundError:
        wanted = "checkpoint" if step is None else f"complete checkpoint of step {step}"
        return FileNotFoundError(f"no {wanted} in {self._directory}; incomplete steps: {list(self.skipped)}")

    def _read(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        path = self._directory / str(step)
        leaves, values, treedef = flatten(like, ABSTRACT)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            info = _info(reader, path)
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
        agreed(self._set_aside_incomplete)
        self._unreadable.clear()
        self._empty_trash()
        best = self._best
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            # Not a rule of its own: without it Orbax does not write the metrics.
            best_fn=None if best is None else lambda metrics: metrics[best.metric],
            todelete_subdir=_TRASH,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _set_aside_incomplete(self) -> None:
        for step in self._steps(complete=False):
            set_aside(self._directory / str(step))

    def _write_checksums(self) -> None:
        """Called by Orbax in a thread of the first process: all of them have written their files, and the step has not
        got its number yet."""
        assert self._saving is not None, "a step is being written"
        for path in self._directory.glob(f"{self._saving[0]}.orbax-checkpoint-tmp*"):
            write_checksums(path)

    def _empty_trash(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / _TRASH, ignore_errors=True)


def _info(reader: ocp.Checkpointer, path: pathlib.Path) -> dict[str, Any]:
    """Descriptions of the leaves, and the metadata."""
    with reading(path):
        return reader.restore(path, args=ocp.args.Composite(info=ocp.args.JsonRestore())).info


def _as_stored(value: Any) -> Any:
    """What Orbax is given: an array, or numpy for what each of several processes has for itself."""
    is_own = jax.process_count() > 1 and isinstance(value, jax.Array) and value.is_fully_addressable
    return (
        np.asarray(value) if isinstance(value, np.generic) or (is_own and not is_key(value.dtype)) else value
    )
