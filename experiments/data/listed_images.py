"""Images of a folder of which the first is read at once, and the others when all that it can show has been checked."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gft_jax as gft
from experiments.data.digests import digest
from gft_jax.data import ImageFolder
from gft_jax.data.decoding import Mode


class ListedImages:
    """Named images of a folder as rows, which have the shape of the first.

    `gft_jax.data.image_files` reads every image once before it returns. Here one has been read, so that whatever does
    not fit its shape is refused at once; `opened` reads the others.

    Args:
        folder: as of `gft_jax.data.image_files`, like all below.
        names: see there.
        size: see there.
        mode: see there.
        index_file: see there; its folder is made when all are read. Where it cannot be written, all are read each time.

    Raises:
        ValueError: if the first image cannot be read; names all that cannot.
    """

    finite = True
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        size: int | None,
        mode: Mode | None,
        index_file: Path | None,
    ) -> None:
        self.names = tuple(names)
        self._open = functools.partial(gft.data.image_files, folder, size=size, mode=mode)
        self._index_file = index_file
        try:
            first = self._open(names[:1])
        except ValueError:
            # Refused for all images that cannot be read, not for the first alone.
            first = self.opened
        self.shape = (len(names), *first.shape[1:])

    @functools.cached_property
    def opened(self) -> ImageFolder:
        """The same rows once every image has been read, or found unchanged in the index file.

        Raises:
            ValueError: if images cannot be read, or are not of the same size and mode.
        """
        return self._open(self.names, index_file=_writable(self._index_file))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.opened[index]


def index_file_of(folder: Path, root: Path) -> Path:
    """Where what the images of a folder are is kept between runs, below a root."""
    whole = folder.resolve()
    return root / "index" / f"{whole.name}-{digest(os.fsencode(whole))[:8]}.json"


def _writable(file: Path | None) -> Path | None:
    if file is None:
        return None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return file if os.access(file.parent, os.W_OK) else None
