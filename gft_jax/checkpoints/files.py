"""What tells a checkpoint that can be trusted from one that was cut short or damaged."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

_COMMIT_MARKS = ("_CHECKPOINT_METADATA", "state/_METADATA", "info/metadata")
"""Written last, removed first or inside what is removed: a step that lacks one is no checkpoint."""

_CHECKSUMS = "checksums.json"
_ITEMS = ("state", "info", "metrics")


class Unreadable(OSError):
    """A checkpoint without checksums that has its commit marks, and cannot be restored all the same."""


def write_checksums(path: Path) -> None:
    """Puts the SHA-256 of every file of a step beside them."""
    files = [file for item in _ITEMS for file in (path / item).rglob("*") if file.is_file()]
    sums = {file.relative_to(path).as_posix(): _checksum(file) for file in files}
    (path / _CHECKSUMS).write_text(json.dumps(sums, indent=0))


def metrics_of(path: Path) -> dict[str, float]:
    """The metrics of a step that is as it was written; empty where it has none."""
    try:
        return json.loads((path / "metrics" / "metrics").read_text())
    except FileNotFoundError:
        return {}


def has_marks(path: Path) -> bool:
    """Whether a step has its commit marks, with something in them."""
    return all(_size(path / mark) > 0 for mark in _COMMIT_MARKS)


def is_as_written(path: Path) -> bool:
    """Whether the files of a step have their checksums; a step of an earlier version has none, and passes."""
    try:
        text = (path / _CHECKSUMS).read_text()
    except FileNotFoundError:
        return True
    try:
        return all(_checksum(path / name) == checksum for name, checksum in json.loads(text).items())
    except (OSError, ValueError):
        return False


def is_whole(path: Path) -> bool:
    """Whether a step was written in full, and is still as it was written."""
    return has_marks(path) and is_as_written(path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names a step as the cause of an error, unless its checksums, which were looked at before, say that it is not."""
    try:
        yield
    except Exception as error:
        if (path / _CHECKSUMS).exists():
            raise
        raise Unreadable(f"the checkpoint {path} cannot be read ({str(error)[:200]}); delete it") from error


def set_aside(directory: str | os.PathLike[str]) -> Path:
    """Renames a directory that cannot be read to ``<directory>.incomplete-<time>``, and returns that."""
    path = Path(directory).absolute()
    return path.rename(path.with_name(f"{path.name}.incomplete-{time.time_ns()}"))


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
