"""Rows out of a grain data source."""

from typing import Any

import numpy as np

from gft_jax.data.rows import checked_index


def from_grain(source: Any, field: str | None = None) -> "GrainRows":
    """Rows of a random-access source of grain, such as ``grain.sources.ArrayRecordDataSource`` or a ``MapDataset``::

        dataset = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(paths)).map(decode)
        stream = gft.pairing.batches(gft.data.from_grain(dataset, "image"), batch_size=256, seed=0)

    Anything with a length and elements by number is such a source; grain itself need not be installed. Elements are
    read one by one, in the order of the stream: give a source that is not shuffled, repeated or cut into batches, and
    whose element of a number is always the same.

    Args:
        source: ``len(source)`` and ``source[number]``, an array or a dict of arrays, of one shape.
        field: which array of a dict; None where elements are arrays.

    Raises:
        ValueError: if the source is empty, endless, or its first element is no array of numbers, or has no such field.
    """
    num_rows = len(source)
    if not 0 < num_rows < _ENDLESS:
        raise ValueError(
            f"the source has {num_rows} elements: rows must be finite in number; leave out repeat(), streams repeat by "
            "themselves"
        )
    return GrainRows(source, field)


_ENDLESS = 2**62
"""Grain counts the elements of a dataset that is repeated for ever as the largest integer."""


class GrainRows:
    """Rows that are elements of a source."""

    def __init__(self, source: Any, field: str | None) -> None:
        self._source, self._field = source, field
        first = self._element(0)
        if first.dtype.kind not in "iufb" and first.dtype.name != "bfloat16":
            raise ValueError(f"elements of the source must be arrays of numbers, got dtype {first.dtype}")
        self.shape, self.dtype = (len(source), *first.shape), first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        numbers = checked_index(index, len(self))
        rows = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for place, number in enumerate(numbers):
            element = self._element(int(number))
            if element.shape != self.shape[1:] or element.dtype != self.dtype:
                raise ValueError(
                    f"element {number} of the source has shape {element.shape} and dtype {element.dtype}, the first "
                    f"one {self.shape[1:]} and {self.dtype}: give a source whose elements are alike"
                )
            rows[place] = element
        return rows

    def _element(self, number: int) -> np.ndarray:
        element = self._source[number]
        if isinstance(element, dict) != (self._field is not None) or (
            self._field is not None and self._field not in element
        ):
            found = f"a dict of {', '.join(element)}" if isinstance(element, dict) else type(element).__name__
            raise ValueError(f"element {number} of the source is {found}, and field is {self._field!r}")
        return np.asarray(element if self._field is None else element[self._field])
