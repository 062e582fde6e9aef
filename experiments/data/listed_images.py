"""Images of a folder of which the first is read at once, and the others when all that it can show has been checked."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gft_jax as gft
from gft_jax.data import ImageFolder
from gft_jax.data.decoding import Mode


class ListedImages:
    """Named images of a folder as rows, which have the shape of the first.

    `gft_jax.data.image_files` reads every image once before it returns. Here one has been read, so that whatever does
    not fit its shape is refused at once; `opened` reads the others.

    Args:
        folder: as of `gft_jax.data.image_files`, like all below.
        names: see there.
        labels: see there.
        classes: see there.
        size: see there.
        mode: see there.
        index_file: see there.
    """

    finite = True
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        labels: Sequence[int] | np.ndarray | None,
        classes: Sequence[str],
        size: int | None,
        mode: Mode | None,
        index_file: Path | None,
    ) -> None:
        self.folder, self.names = folder, tuple(names)
        self._open = functools.partial(
            gft.data.image_files,
            folder,
            names,
            labels=labels,
            classes=classes,
            size=size,
            mode=mode,
            index_file=index_file,
        )
        try:
            first = gft.data.image_files(folder, names[:1], size=size, mode=mode)
        except ValueError:
            first = (
                self.opened
            )  # which is refused for all images that cannot be read, not for the first alone
        self.shape = (len(names), *first.shape[1:])

    @functools.cached_property
    def opened(self) -> ImageFolder:
        """The same rows once every image has been read, or found unchanged in the index file.

        Raises:
            ValueError: if images cannot be read, or are not of the same size and mode.
        """
        return self._open()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.opened[index]


def index_file_of(folder: Path, root: Path) -> Path | None:
    """Where what the images of a folder are is kept between runs: a file below a root; None if none can be written."""
    place, whole = root / "images", folder.resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]
    return place / f"{whole.name}-{digest}.json" if os.access(place, os.W_OK) else None
