"""What a dataset is to the library: rows that are read when they are asked for."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

CHUNK_BYTES = 2**24
"""What a pass over a dataset holds of it at a time."""


@runtime_checkable
class Rows(Protocol):
    """A dataset ``[num, *event]`` that can be read; NumPy's and JAX's arrays are such, memory-mapped ones too.

    ``rows[index]`` of integers ``[n]`` in [0, num), which may repeat, are the rows ``[n, *event]`` of these numbers:
    the only way in which rows are read, so that no process reads what it does not ask for. The same index gives the
    same rows at any time and from any thread.

    Rows whose attribute ``finite`` is True hold no NaN and no infinity by construction; where it is False or missing,
    streams read them once, a chunk at a time, to see that there is none.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(num, *event)``."""
        ...

    @property
    def dtype(self) -> Any:
        """Of the rows."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """The rows of an index array."""
        ...


class Mapped:
    """Rows whose events are a function of those of other rows, computed when they are read."""

    def __init__(
        self, rows: Rows, function: Callable[[np.ndarray], np.ndarray], dtype: Any, finite: bool
    ) -> None:
        self._rows, self._function = rows, function
        self.dtype, self.finite = np.dtype(dtype), finite

    @property
    def shape(self) -> tuple[int, ...]:
        """``(num, *event)``, those of the rows below."""
        return tuple(self._rows.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._function(np.asarray(self._rows[index]))


def is_finite(rows: Rows) -> bool:
    """Whether rows are finite by construction."""
    return getattr(rows, "finite", False)


def checked_index(index: Any, num_rows: int) -> np.ndarray:
    """An index array as integers ``[n]``.

    Raises:
        IndexError: for anything else, or a number outside [0, num_rows).
    """
    numbers = np.asarray(index)
    if numbers.ndim != 1 or not (np.issubdtype(numbers.dtype, np.integer) or not numbers.size):
        raise IndexError(
            f"rows are read by an array of integers [n], got {type(index).__name__} of shape {numbers.shape} and "
            f"dtype {numbers.dtype}; for a single row give [number]"
        )
    numbers = numbers.astype(np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < num_rows:
        raise IndexError(f"rows are numbered 0 to {num_rows - 1}, got {numbers.min()} to {numbers.max()}")
    return numbers


def chunks(rows: Rows, doing: str) -> Iterator[tuple[int, np.ndarray]]:
    """All rows in their order, as many at a time as `CHUNK_BYTES` hold: number of the first row, and the rows.

    Args:
        rows: the dataset ``[num, *event]``.
        doing: what is done, for the progress bar that comes up where it takes longer than two seconds.
    """
    if isinstance(rows, jax.Array):
        rows = np.asarray(rows)
    row_bytes = np.dtype(rows.dtype).itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
    size = max(1, CHUNK_BYTES // max(1, row_bytes))
    with tqdm(total=len(rows), desc=doing, unit="row", delay=2.0, leave=False, disable=None) as bar:
        for start in range(0, len(rows), size):
            stop = min(start + size, len(rows))
            # A slice of an array copies nothing.
            yield start, rows[start:stop] if isinstance(rows, np.ndarray) else rows[np.arange(start, stop)]
            bar.update(stop - start)


def in_memory(rows: Rows) -> Any:
    """All rows as one array in memory; an array in memory is returned as it is.

    For a dataset that fits, and is read often: images are then decoded once instead of in every epoch.

    Args:
        rows: the dataset ``[num, *event]``.
    """
    if isinstance(rows, jax.Array) or (isinstance(rows, np.ndarray) and not isinstance(rows, np.memmap)):
        return rows
    whole = np.empty(rows.shape, rows.dtype)
    for start, chunk in chunks(rows, "reading rows"):
        whole[start : start + len(chunk)] = chunk
    return whole
