"""The rows of a stream as a dataset of grain, for pipelines that read by it."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from gft_jax.data import Rows
from gft_jax.pairing.checks import check_cond, check_data, check_integer
from gft_jax.pairing.order import row_order


def grain_dataset(x1: Array | np.ndarray | Rows, *, seed: int, num_epochs: int, cond: Any = None) -> Any:
    """A ``grain.MapDataset`` of dataset rows in the order in which `batches` of this seed meets them::

        dataset = gft.pairing.grain_dataset(photos, seed=0, num_epochs=10, cond=photos.labels).batch(256)
        for step, rows in enumerate(dataset.to_iter_dataset()):
            ...  # rows["x1"] and rows["cond"] are those of batches(photos, batch_size=256, seed=0, ...).batch(step)

    Element i is a dict of ``x1 [*event]`` and, with conditions, ``cond``. Its order is that of the stream already: do
    not shuffle it. The rows are as they are read, before any augmentation or coupling. For the opposite direction, a
    source of grain in a stream, see `gft_jax.data.from_grain`.

    Args:
        x1: dataset ``[num, *event]``.
        seed: of the stream.
        num_epochs: how often each row occurs, >= 1: the dataset has ``num_epochs * num`` elements.
        cond: conditions that follow the data: a pytree of ``[num, ...]``.

    Raises:
        ImportError: where grain is not installed, with what to install.
        ValueError: for data or conditions that `batches` would refuse, a negative seed, or no epoch.
    """
    try:
        import grain  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('grain is not installed: pip install "gft_jax[grain]"') from error
    check_integer("seed", seed, 0)
    check_integer("num_epochs", num_epochs, 1)
    check_data("x1", x1)
    check_cond("cond", cond, len(x1))
    return grain.MapDataset.source(_Ordered(x1, cond, seed, num_epochs))


class _Ordered:
    """Elements by their place in the stream."""

    def __init__(self, x1: Any, cond: Any, seed: int, num_epochs: int) -> None:
        self._x1, self._cond, self._seed, self._num_epochs = x1, cond, seed, num_epochs

    def __len__(self) -> int:
        return len(self._x1) * self._num_epochs

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = row_order(len(self._x1), 1, self._seed, int(index))
        row = {"x1": np.asarray(self._x1[number])[0]}
        if self._cond is not None:
            row["cond"] = jax.tree.map(lambda leaf: np.asarray(leaf[number])[0], self._cond)
        return row
