"""Images of a folder, or latents of a file, with their classes."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

import gft_jax as gft
from experiments.data import digests
from experiments.data.class_numbers import in_network
from experiments.data.division import Division
from experiments.data.listed_images import ListedImages
from experiments.data.shifted import Labels, ShiftedData
from gft_jax.data import Rows
from gft_jax.data.decoding import Mode
from gft_jax.data.listing import list_images
from gft_jax.data.rows import Mapped, is_finite
from gft_jax.pairing.checks import check_data

Layout = Literal["nhwc", "nchw"]
IN_MEMORY = 2**30
"""Bytes of float32 rows up to which they are read once, and kept."""
MOST_CLASSES = 2**20
"""Labels of a file from here on are taken for a mistake, not for so many classes: ImageNet-21k has 21,841, and a table
of 2^20 embeddings as wide as those of SiT-XL takes 5 GB."""
NUM_SHOWN = 10
"""Held-out images whose samples are shown step by step: the first."""


class LabelledRows(NamedTuple):
    """Rows ``[num, height, width, channels]`` and what is known of them."""

    rows: Rows
    labels: np.ndarray | None
    """Numbers of their classes ``[num]``, int32; None of rows without classes."""
    classes: tuple[str, ...]
    """Names of the classes in the order of their numbers; fewer, or none, where labels of a file have none."""
    digests: Callable[[], dict[str, str]]
    """Finds what tells the rows from others, by what it is of; see `experiments.data.digests`."""
    kind: Literal["images", "latents"] = "images"
    has_own_numbers: bool = False
    """Whether the data themselves number the classes, as labels of a file and benchmarks do; the order of folders does
    not."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(height, width, channels)``."""
        return tuple(self.rows.shape[1:])

    @property
    def fingerprint(self) -> dict[str, str]:
        """What tells rows and labels from others: their digests, shape, and the numbers of the classes."""
        labels = "none" if self.labels is None else digests.digest(self.labels.tobytes())
        return {"shape": str(tuple(self.rows.shape)), **self.digests(), "labels": labels}

    @property
    def num_classes(self) -> int | None:
        """Classes that a network for these rows must know; None without labels."""
        return None if self.labels is None else max(len(self.classes), int(self.labels.max()) + 1)

    def name_of(self, label: int) -> str:
        """Name of a class, or its number where it has none."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def numbered_as(self, known: Sequence[str], num_classes: int) -> "LabelledRows":
        """The same rows with the numbers that a network gives their classes; see `in_network`.

        Where the data have numbers of their own, these stand if there are no names to go by on one of both sides.

        Args:
            known: names of the classes that the network was trained on; empty where it has numbers alone.
            num_classes: of the network.

        Raises:
            ValueError: if some classes are known and others not, or it cannot be told.
        """
        if self.labels is None or (self.has_own_numbers and not known):
            return self
        if not self.classes:
            return self._replace(classes=tuple(known))
        numbers, names = in_network(self.classes, known, num_classes)
        return self._replace(labels=numbers[self.labels], classes=names)

    def opened(self) -> "LabelledRows":
        """The same rows once every image has been read, or every latent has been looked at.

        Raises:
            ValueError: if images cannot be read, or are not of the same size and mode; if latents are not finite.
        """
        if isinstance(self.rows, ListedImages):
            return self._replace(rows=self.rows.opened)
        check_data("latents", self.rows)
        return self._replace(rows=Mapped(self.rows, lambda x: x, self.rows.dtype, finite=True))


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
    folder: Path, size: int | None, mode: Mode | None, classes: Sequence[str], index_file: Path | None = None
) -> LabelledRows:
    """The images of a folder, of which the first has been read; see `gft_jax.data.images` for what it may hold.

    Args:
        folder: of images, or of class folders.
        size: as of `gft_jax.data.images`.
        mode: likewise.
        classes: names of the classes in the order of their labels; empty for the class folders, sorted.
        index_file: as of `gft_jax.data.images`.

    Raises:
        ValueError: as of `gft_jax.data.images`; what takes to read all images is refused by `LabelledRows.opened`.
    """
    if not folder.is_dir():
        raise ValueError(f"--data is {folder}, which is no folder and no .npz file; see --help")
    listing = list_images(folder, classes or None)
    labels = None if listing.labels is None else np.array(listing.labels, np.int32)
    rows = ListedImages(folder, listing.names, size=size, mode=mode, index_file=index_file)
    return LabelledRows(rows, labels, listing.classes, partial(digests.of_folder, folder, listing.names))


def latent_rows(file: Path, layout: Layout, classes: Sequence[str]) -> LabelledRows:
    """The array ``latents`` of a ``.npz`` file, and the array ``labels`` where it has one.

    Args:
        file: written by `numpy.savez`, so that its rows are read when they are asked for.
        layout: order of the axes of ``latents``: ``[num, height, width, channels]`` or
            ``[num, channels, height, width]``.
        classes: names of the classes in the order of their labels; empty where they have none.

    Raises:
        ValueError: if the file has no such array, latents are not floating-point numbers of four axes, labels are no
            integers, one a row, below zero or too large, or classes are named that it has no labels of.
    """
    latents = gft.data.open_array(file, "latents")
    if latents.ndim != 4 or latents.dtype.kind != "f" or not len(latents):
        raise ValueError(
            f"latents of {file} have shape {latents.shape} and dtype {latents.dtype}; allowed are floating-point "
            f"numbers [num, {'height, width, channels' if layout == 'nhwc' else 'channels, height, width'}]"
        )
    with np.load(file) as archive:
        try:
            labels = archive["labels"] if "labels" in archive.files else None
        except ValueError as error:
            raise ValueError(f"labels of {file} cannot be read, allowed are integers: {error}") from error
    if labels is not None:
        _check_labels(file, labels, len(latents), classes)
        labels = labels.astype(np.int32)
    elif classes:
        raise ValueError(
            f"{file} has no array labels, and --classes names {len(classes)} classes: leave it out"
        )
    rows = latents if layout == "nhwc" else _Turned(latents)
    return LabelledRows(
        rows, labels, tuple(classes), partial(digests.of_latents, file), "latents", has_own_numbers=True
    )


def _check_labels(file: Path, labels: np.ndarray, num_rows: int, classes: Sequence[str]) -> None:
    if labels.shape != (num_rows,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"labels of {file} have shape {labels.shape} and dtype {labels.dtype}; allowed are integers from 0 on, "
            f"[{num_rows}], one for each row of latents"
        )
    largest = int(labels.max())
    if classes and largest >= len(classes):
        raise ValueError(
            f"labels of {file} go up to {largest}, and --classes names {len(classes)}: 0 to {len(classes) - 1}"
        )
    if largest >= MOST_CLASSES:
        raise ValueError(
            f"labels of {file} go up to {largest}; allowed are numbers of classes, below {MOST_CLASSES}"
        )


class _Turned(Mapped):
    """Rows ``[num, channels, height, width]`` with the channels last."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__(rows, lambda x: np.moveaxis(x, 1, -1), rows.dtype, finite=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(num, height, width, channels)``."""
        num, channels, height, width = self._rows.shape
        return (num, height, width, channels)


def read(data: LabelledRows, division: Division) -> ShiftedData:
    """The sets of a division; those to train on are read now where they are few, else when they are asked for."""
    labels = data.labels
    named = None if labels is None else Labels(*(labels[index] for index in division))
    held_out, fresh = (_read(data.rows, index) for index in division[1:])
    return ShiftedData(None, readable(data.rows, division.target), held_out, fresh, named)


def readable(rows: Rows, index: np.ndarray) -> Rows | np.ndarray:
    """Rows of these numbers as float32: in memory where they are few, else read when they are asked for."""
    if num_bytes(rows, len(index)) <= IN_MEMORY:
        return _read(rows, index)
    return Mapped(Taken(rows, index), lambda x: x.astype(np.float32), np.float32, is_finite(rows))


def num_bytes(rows: Rows, count: int) -> int:
    """What so many rows take as float32."""
    return 4 * count * math.prod(rows.shape[1:])


def _read(rows: Rows, index: np.ndarray) -> np.ndarray:
    return gft.data.in_memory(Taken(rows, index)).astype(np.float32)
