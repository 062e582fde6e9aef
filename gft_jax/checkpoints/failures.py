"""What is said of a checkpoint that could not be written."""

import errno
import re
import shutil
from pathlib import Path


class NotSaved(OSError):
    """A checkpoint that could not be written, for want of space or for another reason; those before it are intact."""


def not_saved(directory: Path, step: int, num_bytes: int, last: int | None, cause: Exception) -> NotSaved:
    """The error for a step whose writing failed, with what is missing where the disk is full.

    Args:
        directory: of the checkpoints.
        step: that was to be written.
        num_bytes: of its arrays; on disk they may take less, since Orbax compresses them.
        last: newest step on disk, or None.
        cause: what was raised.
    """
    kept = "no checkpoint was written before" if last is None else f"the one of step {last} is intact"
    text = f"the checkpoint of step {step} could not be written to {directory}: "
    number = _errno_of(cause)
    if number in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(directory).free
        text += f"the disk is full. It takes up to {_size(num_bytes)}, and {_size(free)} are free without it"
        missing = num_bytes - free
        text += f": at most {_size(missing)} are missing" if missing > 0 else " (a quota may leave you less)"
        text += f"; {kept}. Make room there and continue"
    elif number == errno.EFBIG:
        text += f"a file would be larger than this process or file system may write (ulimit -f); {kept}"
    else:
        text += f"{_first_line(cause)}; {kept}"
    error = NotSaved(text)
    error.errno = number
    return error


def _errno_of(cause: Exception) -> int | None:
    """TensorStore says it in the text alone; a bare `OSError` of Python has the number."""
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno
    found = re.search(r"os_error_code='(\d+)'", str(cause))
    return int(found.group(1)) if found else None


def _first_line(cause: Exception) -> str:
    return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0][:300]}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.2f} GB"
