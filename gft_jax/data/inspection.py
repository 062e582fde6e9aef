"""Every image of a folder is read once at the start, so that nothing fails in the middle of a run."""

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from gft_jax.data.decoding import natural_mode

_VERSION = 1
"""Of the file in which findings are kept."""
_LYING = (5, 6, 7, 8)
"""EXIF orientations of images that are turned by a quarter to be upright."""


class Facts(NamedTuple):
    """What an image is, found by reading it."""

    height: int
    """Of the upright image."""
    width: int
    """Likewise."""
    mode: str
    """That of `natural_mode`."""


def inspect(
    folder: Path, names: Sequence[str], pool: ThreadPoolExecutor, index_file: Path | None
) -> list[Facts | str]:
    """What each image is, or why it cannot be read.

    Args:
        folder: in which the images lie.
        names: their paths below it.
        pool: threads that read them.
        index_file: where what was found is kept: images that are still of the same size in bytes and the same time of
            change are not read again. None to read all.

    Raises:
        ValueError: if the index file is something else.
        OSError: if it cannot be written, before any image is read.
    """
    known = {} if index_file is None else _load(index_file)
    found: list[Facts | str] = []
    index: dict[str, list] = {}
    with tqdm(
        total=len(names), desc=f"checking images of {folder.name}", unit="image", delay=2.0, disable=None
    ) as bar:
        # Names in portions: one task for each image would cost more than a small image takes.
        portions = [names[start : start + 64] for start in range(0, len(names), 64)]
        for portion, results in zip(
            portions,
            pool.map(lambda each: [_look(folder / name, known.get(name)) for name in each], portions),
            strict=True,
        ):
            for name, (stamp, facts) in zip(portion, results, strict=True):
                found.append(facts)
                if isinstance(facts, Facts):
                    index[name] = [*stamp, *facts]
            bar.update(len(portion))
    if index_file is not None and index != known:
        _save(index_file, index)
    return found


def _look(path: Path, known: list | None) -> tuple[list[int], Facts | str]:
    """Size in bytes and time of change of a file, and what it is or why it cannot be read."""
    try:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        if known is not None and known[:2] == stamp:
            return stamp, Facts(*known[2:])
        return stamp, _read(path)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds of errors for broken files
        return [], f"{type(error).__name__}: {error}"


def _read(path: Path) -> Facts:
    with Image.open(path) as image:
        mode, (width, height) = natural_mode(image), image.size
        lying = image.getexif().get(ExifTags.Base.Orientation) in _LYING
        # A JPEG is read through to its end also in an eighth of its size, which takes a fraction of the time.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        ImageOps.exif_transpose(image)
    return Facts(width, height, mode) if lying else Facts(height, width, mode)


def _load(path: Path) -> dict[str, list]:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(f"index_file {path} cannot be written: its folder is not there, or is read-only")
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        version, images = content["version"], content["images"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not an index of images: remove it, or give another index_file"
        ) from error
    return images if version == _VERSION else {}


def _save(path: Path, index: dict[str, list]) -> None:
    """Written whole or not at all, also where several processes do so."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({"version": _VERSION, "images": index}, file)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
