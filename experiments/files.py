"""Files that are there whole or not at all, and what is said of those that cannot be read."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a kill leaves the old content or the new one.

    Raises:
        OSError: naming the file, if there is no room for it; the old content is still there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:  # which names no file where the disk is full
        with suppress(OSError):
            partial.unlink()
        raise OSError(f"{path} cannot be written: {error}") from error
    os.replace(partial, path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as a NumPy archive, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **dict(arrays))  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def remove_folder(path: Path) -> None:
    """Removes a folder, if there is one, so that a kill leaves it whole or not at all under its name.

    What a kill leaves under a hidden name is removed by the next call.
    """
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such archive.
    """
    try:
        with np.load(path) as file:
            return dict(file)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): remove it, and start the same command again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
