"""How pairs lie on disk: arrays of NumPy that are written a chunk at a time, and a description that is written last."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from gft_jax.data import open_array

DESCRIPTION = "pairs.json"
"""Its presence says that all pairs are there."""
_PROGRESS = "progress.json"
_NEW = ".new"
_HEADER_BYTES = 256


class ArrayFile:
    """A ``.npy`` file of known shape, whose rows are written in their order."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        self._row_bytes = self._dtype.itemsize * math.prod(shape[1:])

    def create(self) -> None:
        """Makes the file without rows; one that was there is lost."""
        fields = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        header = repr(fields).encode()
        # Padded to a fixed length, so that a row's place is known without reading the header.
        length = _HEADER_BYTES - len(npy.magic(1, 0)) - 2
        self._path.write_bytes(
            npy.magic(1, 0) + length.to_bytes(2, "little") + header.ljust(length - 1) + b"\n"
        )

    def check_rows(self, num_rows: int) -> None:
        """Refuses a file that does not hold so many rows.

        Raises:
            ValueError: if it is missing, or cut short.
        """
        size = self._path.stat().st_size if self._path.is_file() else 0
        if size < _HEADER_BYTES + num_rows * self._row_bytes:
            raise ValueError(
                f"{self._path} is missing or cut short, and {num_rows} pairs are said to be there: delete "
                f"{self._path.parent}, and make them anew."
            )

    def read(self, start: int, num_rows: int) -> np.ndarray:
        """Rows that have been written, in memory."""
        with self._path.open("rb") as file:
            file.seek(_HEADER_BYTES + start * self._row_bytes)
            rows = np.frombuffer(file.read(num_rows * self._row_bytes), self._dtype)
        return rows.reshape(num_rows, *self._shape[1:])

    def write(self, start: int, rows: np.ndarray) -> None:
        """Puts rows at their place, on the disk itself."""
        # Not by a memory map: where a disk is full, that ends the process instead of raising an error.
        with self._path.open("r+b") as file:
            file.seek(_HEADER_BYTES + start * self._row_bytes)
            file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file in full or not at all."""
    partial = path.with_name(path.name + _NEW)
    with partial.open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def partial_of(directory: Path) -> Path:
    """Where pairs are written until all are there."""
    return directory.with_name(directory.name + ".partial")


def description_of(directory: Path) -> dict[str, Any] | None:
    """What finished pairs are said to be; None where there are none."""
    path = directory / DESCRIPTION
    return json.loads(path.read_text()) if path.is_file() else None


def rows_done(partial: Path, description: Mapping[str, Any]) -> int:
    """How many rows of these very pairs have been written already.

    Raises:
        ValueError: if what is there is of other pairs.
    """
    path = partial / _PROGRESS
    if not path.is_file():
        return 0
    progress = json.loads(path.read_text())
    check_same(partial, progress["pairs"], description)
    return progress["rows"]


def check_free(directory: Path, partial: Path) -> None:
    """Refuses to write where something else lies.

    Raises:
        FileExistsError: naming it.
    """
    for path, ours in ((directory, set()), (partial, {_PROGRESS + _NEW})):
        there = {each.name for each in path.iterdir()} if path.is_dir() else set()
        if path.exists() and not path.is_dir():
            there = {path.name}
        # What is noted first tells pairs that were begun from anything else.
        begun = path == partial and _PROGRESS in there
        if there - ours and not begun:
            raise FileExistsError(
                f"{path} is or holds something else than pairs of a model: choose another directory, or move it away."
            )


def begin(
    partial: Path,
    description: Mapping[str, Any],
    files: Iterable[ArrayFile],
    cond: Mapping[str, np.ndarray],
) -> None:
    """A directory of pairs without rows, with their conditions by file; `check_free` has let it pass."""
    partial.mkdir(parents=True, exist_ok=True)
    note_rows(partial, description, 0)
    for name, array in cond.items():
        np.save(partial / name, array)
    for file in files:
        file.create()


def note_rows(partial: Path, description: Mapping[str, Any], rows: int) -> None:
    """Says how many rows are there."""
    write_json(partial / _PROGRESS, {"pairs": dict(description), "rows": rows})


def finish(partial: Path, directory: Path, description: Mapping[str, Any]) -> None:
    """Gives finished pairs their name."""
    write_json(partial / DESCRIPTION, description)
    os.replace(partial, directory)
    # Not before: a kill in between would leave all pairs, and nothing that says so.
    (directory / _PROGRESS).unlink()


def check_same(directory: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses pairs of another model, or made otherwise.

    Raises:
        ValueError: naming what differs.
    """
    if there["model"] != asked["model"]:
        raise ValueError(
            f"the pairs in {directory} were made by another model: parameters {there['model'][:12]} made them, and "
            f"given are {asked['model'][:12]} (SHA-256 of their content). Give those that made them, or make pairs of "
            "these in another directory."
        )
    if differing := [name for name in asked if there.get(name) != asked[name]]:
        name = differing[0]
        raise ValueError(
            f"the pairs in {directory} were made otherwise: {name} is {there.get(name)!r} there, and {asked[name]!r} "
            f"is asked for; {', '.join(differing)} differ. Choose another directory, or delete this one."
        )


def cond_files(names: list[str] | str | None) -> dict[str | None, str]:
    """File of each entry of the conditions; an entry without a name is all of them."""
    if names is None:
        return {}
    return {None: "cond.npy"} if isinstance(names, str) else {name: f"cond-{name}.npy" for name in names}


def read_cond(directory: Path, names: list[str] | str | None) -> Any:
    """The conditions as they were given."""
    arrays = {name: open_array(directory / file) for name, file in cond_files(names).items()}
    return arrays.get(None, arrays) if arrays else None
