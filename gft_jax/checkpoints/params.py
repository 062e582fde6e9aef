"""Parameters that are written once: the base of a run, and what each method ends with."""

import glob
import os
import pathlib
import platform
import shutil
from typing import Any

from jaxtyping import PyTree

from gft_jax.checkpoints.files import is_whole, set_aside
from gft_jax.checkpoints.processes import agreed
from gft_jax.checkpoints.steps import Checkpoints


def save_params(
    directory: str | os.PathLike[str], params: PyTree, metadata: dict[str, Any] | None = None
) -> None:
    """Write one tree once, such as the frozen base parameters of a run or its final ones.

    In a program of several processes all of them call this, as for `Checkpoints`.

    Args:
        directory: a directory for it alone; written in full or not at all. One that was cut short or damaged is set
            aside first, as ``<directory>.incomplete-<time>``.
        params: pytree of arrays, as for `Checkpoints.save`.
        metadata: anything that JSON can hold, for `params_metadata`.

    Raises:
        FileExistsError: the directory holds a checkpoint already, or another process has written one meanwhile.
        OSError: it holds something else.
        ValueError: as `Checkpoints.save`.
    """
    target = pathlib.Path(directory).absolute()
    taken = f"{directory} holds a checkpoint already; save to another directory, or delete it"
    if has_params(target):
        raise FileExistsError(taken)
    partial = pathlib.Path(agreed(lambda: str(_fresh_partial(target))))
    with Checkpoints(partial) as checkpoints:
        checkpoints.save(0, params, metadata)
    agreed(lambda: _give_name(partial, target, taken))


def has_params(directory: str | os.PathLike[str]) -> bool:
    """Whether the directory is as `save_params` has written it; an empty, cut-short or damaged one is not."""
    with Checkpoints(directory) as checkpoints:
        return checkpoints.latest_step() == 0


def load_params(directory: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Tree written by `save_params`, bit for bit; ``like`` and what is raised are those of `Checkpoints.restore`."""
    with Checkpoints(directory) as checkpoints:
        params, _ = checkpoints.restore(like, step=0)
    return params


def params_metadata(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_params` was given as metadata; what is raised is that of `Checkpoints.metadata`."""
    with Checkpoints(directory) as checkpoints:
        return checkpoints.metadata(0)


def _fresh_partial(target: pathlib.Path) -> pathlib.Path:
    """Where the parameters are written first.

    Orbax makes the directory before its content: a kill in between would leave one that looks finished.
    """
    _remove_leftovers(target)
    return target.with_name(f".{target.name}.partial-{os.getpid()}-{platform.node()}")


def _give_name(partial: pathlib.Path, target: pathlib.Path, taken: str) -> None:
    """Renames what was written, unless there is a checkpoint by now, and sets aside a damaged one.

    Of several processes the first alone comes here, so it must not ask the others what is on disk.
    """
    try:
        os.replace(partial, target)
    except OSError as error:  # a directory that is not empty cannot be replaced
        if is_whole(target / "0"):
            shutil.rmtree(partial)
            raise FileExistsError(taken) from error
        if not (target / "0").is_dir():
            shutil.rmtree(partial)
            raise
        set_aside(target)
        os.replace(partial, target)


def _remove_leftovers(target: pathlib.Path) -> None:
    """Removes what killed processes of this machine left of their saves; a living one is still writing its own."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        pid, _, machine = path.name.rpartition(".partial-")[2].partition("-")
        if machine == platform.node() and (int(pid) == os.getpid() or not _is_alive(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True
