"""NumPy's files, read where they lie: a memory map of ``.npy``, and of the members of an uncompressed ``.npz``."""

import math
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.lib import format as npy

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Of a member of a ZIP archive; the last two numbers are the lengths of its name and of its extra field."""
LARGE = 2**28
"""Bytes of a compressed member from which on it is said that it is read into memory."""


def open_array(path: str | os.PathLike[str], member: str | None = None) -> np.ndarray:
    """An array of a ``.npy`` or ``.npz`` file, memory-mapped and read-only: rows are read when they are asked for::

        images = gft.data.from_images(gft.data.open_array("train.npz", "images"))
        labels = gft.data.open_array("train.npz", "labels")
        stream = gft.pairing.batches(images, batch_size=256, seed=0, cond=labels, num_classes=10)

    A member of a ``.npz`` file that `numpy.savez` wrote is mapped inside the file. One of
    `numpy.savez_compressed` cannot be: it is read into memory, with a warning from 256 MiB on. Arrays whose
    first axis is not the slowest (Fortran order) are mapped too, but a row of them touches the whole file.

    Args:
        path: the file.
        member: name of an array of a ``.npz`` file, as it was given to `numpy.savez`; None for a ``.npy`` file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is neither, is cut short, or holds Python objects or numbers in a foreign byte
            order; for a member that is not there (says which are), or one asked of a ``.npy`` file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        is_archive, is_array = zipfile.is_zipfile(file), _starts_with_magic(file)
        if is_array and member is not None:
            raise ValueError(f"{path} holds a single array: it has no member {member!r}, leave it out")
        if is_array:
            return _mapped(file, path, 0, str(path))
        if not is_archive:
            raise ValueError(f"{path} is neither a .npy nor a .npz file, or its end is missing")
    return _member(path, member)


def _starts_with_magic(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX


def _member(path: Path, member: str | None) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        if member is None or member not in members:
            asked = "holds arrays by name: give one" if member is None else f"has no array {member!r}"
            raise ValueError(f"{path} {asked}; there are: {', '.join(members) or 'none'}")
        info, name = archive.getinfo(members[member]), f"{path}, member {member!r}"
        if info.compress_type == zipfile.ZIP_STORED:
            return _mapped(file, path, _start_of_data(file, info), name)
        with archive.open(info) as stream:
            _header(stream, name)
        if info.file_size >= LARGE:
            warnings.warn(
                f"{name} is compressed and cannot be memory-mapped: its {info.file_size / 2**20:.0f} MiB are read into "
                "memory; numpy.savez writes members that can be mapped",
                stacklevel=3,
            )
        with archive.open(info) as stream:
            return npy.read_array(stream, allow_pickle=False)


def _start_of_data(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, whose extra field need not be that of the directory."""
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return info.header_offset + len(header) + name_length + extra_length


def _mapped(file: BinaryIO, path: Path, start: int, name: str) -> np.ndarray:
    file.seek(start)
    shape, fortran, dtype = _header(file, name)
    offset, num_bytes = file.tell(), math.prod(shape) * dtype.itemsize
    there = path.stat().st_size - offset
    if there < num_bytes:
        raise ValueError(
            f"{name} is cut short: shape {shape} of {dtype} takes {num_bytes} bytes, {there} are there"
        )
    if not num_bytes:  # nothing to map
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def _header(file: IO[bytes] | zipfile.ZipExtFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis is the fastest, and dtype."""
    try:
        version = npy.read_magic(file)
        # Version 3.0 has other letters in the names of fields, and there is no field in what is taken here.
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name} is no array of numbers that can be read: {error}") from error
    if dtype.hasobject or dtype.names is not None or not dtype.isnative:
        raise ValueError(
            f"{name} has dtype {dtype.str if dtype.names is None else dtype}: it must be of plain numbers in this "
            "machine's byte order; save it again by numpy.save, e.g. as x.astype(numpy.float32)"
        )
    return shape, fortran, dtype
