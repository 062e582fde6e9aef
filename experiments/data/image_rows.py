"""Images of a folder, or latents of a file, with their classes; split into data to train on and to judge by."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

import gft_jax as gft
from experiments.data import digests
from experiments.data.shifted import Labels, ShiftedData
from gft_jax.data import Rows
from gft_jax.data.rows import Mapped, is_finite

Layout = Literal["nhwc", "nchw"]
IN_MEMORY = 2**30
"""Bytes of float32 rows up to which they are read once, and kept."""
NUM_SHOWN = 10
"""Held-out images whose samples are shown step by step: the first."""
_SPLIT_SEED = 20_261_201


class LabelledRows(NamedTuple):
    """Rows ``[num, height, width, channels]`` and what is known of them."""

    rows: Rows
    labels: np.ndarray | None
    """Numbers of their classes ``[num]``, int32; None of rows without classes."""
    classes: tuple[str, ...]
    """Names of the classes in the order of their numbers."""
    digests: Callable[[], dict[str, str]]
    """Finds what tells the rows from others, by what it is of; see `experiments.data.digests`."""
    kind: Literal["images", "latents"] = "images"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(height, width, channels)``."""
        return tuple(self.rows.shape[1:])

    @property
    def fingerprint(self) -> dict[str, str]:
        """What tells rows and labels from others: their digests, shape, and the numbers of the classes."""
        labels = "none" if self.labels is None else digests.digest(self.labels.tobytes())
        return {"shape": str(tuple(self.rows.shape)), **self.digests(), "labels": labels}

    def numbered_as(self, classes: Sequence[str]) -> "LabelledRows":
        """The same rows with the numbers that classes of these names have, if all of theirs are among them."""
        if self.labels is None or not set(self.classes) <= set(classes):
            return self
        numbers = np.array([classes.index(name) for name in self.classes], np.int32)
        return self._replace(labels=numbers[self.labels], classes=tuple(classes))


class Taken:
    """Rows of these numbers out of others."""

    def __init__(self, rows: Rows, index: np.ndarray) -> None:
        self._rows, self._index = rows, index
        self.shape = (len(index), *rows.shape[1:])
        self.dtype, self.finite = np.dtype(rows.dtype), is_finite(rows)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: np.ndarray, /) -> np.ndarray:
        return np.asarray(self._rows[self._index[index]])


def folder_rows(
    folder: Path, size: int | None, mode: Literal["L", "RGB", "RGBA"] | None, classes: Sequence[str]
) -> LabelledRows:
    """The images of a folder; see `gft_jax.data.images` for what it may hold and what is refused."""
    if not folder.is_dir():
        raise ValueError(f"--data is {folder}, which is no folder and no .npz file; see --help")
    found = gft.data.images(folder, size=size, mode=mode, classes=classes or None)
    return LabelledRows(found, found.labels, found.classes, partial(digests.of_folder, folder, found.names))


def latent_rows(file: Path, layout: Layout, classes: Sequence[str]) -> LabelledRows:
    """The array ``latents`` of a ``.npz`` file, and the array ``labels`` where it has one.

    Args:
        file: written by `numpy.savez`, so that its rows are read when they are asked for.
        layout: order of the axes of ``latents``: ``[num, height, width, channels]`` or
            ``[num, channels, height, width]``.
        classes: names of the classes; without any they are numbered up to the largest label.

    Raises:
        ValueError: if the file has no such array, latents are not floating-point numbers of four axes, labels are no
            integers, one a row, or below zero.
    """
    latents = gft.data.open_array(file, "latents")
    if latents.ndim != 4 or latents.dtype.kind != "f" or not len(latents):
        raise ValueError(
            f"latents of {file} have shape {latents.shape} and dtype {latents.dtype}; allowed are floating-point "
            f"numbers [num, {'height, width, channels' if layout == 'nhwc' else 'channels, height, width'}]"
        )
    with np.load(file) as archive:
        labels = archive["labels"] if "labels" in archive.files else None
    if labels is not None:
        if labels.shape != latents.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"labels of {file} have shape {labels.shape} and dtype {labels.dtype}; allowed are integers from 0 on, "
                f"[{len(latents)}], one for each row of latents"
            )
        labels = labels.astype(np.int32)
    num_classes = 0 if labels is None else int(labels.max()) + 1
    if classes and num_classes > len(classes):
        raise ValueError(
            f"labels of {file} go up to {num_classes - 1}, and --classes names {len(classes)}: 0 to {len(classes) - 1}"
        )
    names = tuple(classes) or tuple(map(str, range(num_classes)))
    rows = latents if layout == "nhwc" else _Turned(latents)
    return LabelledRows(rows, labels, names, partial(digests.of_latents, file), "latents")


class _Turned(Mapped):
    """Rows ``[num, channels, height, width]`` with the channels last."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__(rows, lambda x: np.moveaxis(x, 1, -1), rows.dtype, finite=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(num, height, width, channels)``."""
        num, channels, height, width = self._rows.shape
        return (num, height, width, channels)


def split(data: LabelledRows, share: float, most: int) -> ShiftedData:
    """Rows to train on, and others to judge by, always the same ones.

    ``held_out`` go through the classes in turn; they are at most ``most`` of the share that is held out, and
    no more than those to train on, of which ``fresh`` are as many: a floor holds real data against real data.

    Args:
        data: all rows.
        share: of the rows that are not trained on, above 0, below 1.
        most: of held-out rows that are used, >= 2.

    Raises:
        ValueError: if fewer than two rows were held out, or none left.
    """
    num = len(data.rows)
    num_held = round(share * num)
    if num_held < 2 or num - num_held < 2:
        raise ValueError(
            f"of {num} images, the share {share:g} that is held out is {num_held}; at least two must be held out, and "
            "two be left: give another --held-out, or more images"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(num)
    held = order[:num_held]
    if data.labels is not None:
        held = held[in_turn(data.labels[held])]
    held, target = held[: min(most, num - num_held)], np.sort(order[num_held:])
    fresh = order[num_held:][: len(held)]
    labels = data.labels
    named = None if labels is None else Labels(labels[target], labels[held], labels[fresh])
    return ShiftedData(
        None, readable(data.rows, target), _read(data.rows, held), _read(data.rows, fresh), named
    )


def in_turn(labels: np.ndarray) -> np.ndarray:
    """An order of the rows ``[num]`` in which the first of each class come first, then the second of each."""
    place = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        place[of_class] = np.arange(len(of_class))
    return np.lexsort((labels, place))


def readable(rows: Rows, index: np.ndarray) -> Rows | np.ndarray:
    """Rows of these numbers as float32: in memory where they are few, else read when they are asked for."""
    num_bytes = 4 * len(index) * int(np.prod(rows.shape[1:]))
    if num_bytes <= IN_MEMORY:
        return _read(rows, index)
    return Mapped(Taken(rows, index), lambda x: x.astype(np.float32), np.float32, is_finite(rows))


def _read(rows: Rows, index: np.ndarray) -> np.ndarray:
    return gft.data.in_memory(Taken(rows, index)).astype(np.float32)
