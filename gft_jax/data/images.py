"""Folders of images as rows, decoded when they are read."""

import functools
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gft_jax.data.decoding import CHANNELS, Mode, decode
from gft_jax.data.inspection import Facts, inspect
from gft_jax.data.listing import list_images
from gft_jax.data.pixels import scaled
from gft_jax.data.rows import checked_index


class ImageFolder:
    """Images as float32 rows ``[num, height, width, channels]`` in [-1, 1]; made by `images` or `image_files`."""

    finite = True
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...],
        labels: np.ndarray | None,
        classes: tuple[str, ...],
        unreadable: dict[str, str],
        mode: str,
        size: tuple[int, int],
        threads: int,
    ) -> None:
        self.folder, self.names = folder, names
        self.labels, self.classes = labels, classes
        self.unreadable = unreadable
        self.mode = mode
        self._size, self._threads = size, threads

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(num, height, width, channels)``."""
        return (len(self), *self._size, CHANNELS[self.mode])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> np.ndarray:
        different, places = np.unique(checked_index(index, len(self)), return_inverse=True)
        pixels = np.empty((len(different), *self.shape[1:]), np.uint8)

        def fill(portion: np.ndarray) -> None:
            for place in portion:
                pixels[place] = self._decoded(self.names[different[place]])

        num_portions = max(1, min(4 * self._threads, len(different)))
        portions = np.array_split(np.arange(len(different)), num_portions)
        list(_pool(self._threads).map(fill, portions))  # raises what was raised in a thread
        return scaled(pixels)[places]

    def _decoded(self, name: str) -> np.ndarray:
        try:
            return decode(self.folder / name, self.mode, self._size)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.folder / name} could be read when the folder was opened, and cannot be any more "
                f"({type(error).__name__}: {error}): restore it, and resume"
            ) from error


def images(
    folder: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    mode: Mode | None = None,
    classes: Sequence[str] | None = None,
    on_unreadable: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
    index_file: str | os.PathLike[str] | None = None,
) -> ImageFolder:
    """The images of a folder as float32 rows ``[num, height, width, channels]`` in [-1, 1]: ``pixel / 127.5 - 1``::

        photos = gft.data.images("photos", size=64, mode="RGB")
        stream = gft.pairing.batches(
            photos, batch_size=256, seed=0, cond=photos.labels, num_classes=len(photos.classes),
            augment=gft.data.horizontal_flip(),
        )

    Images lie in the folder itself, or in one folder for each class (torchvision's ``ImageFolder`` layout): the classes
    are then the folders' names, sorted, and ``labels`` their numbers ``[num]``; otherwise ``labels`` is None. Files
    count as images by their suffix (bmp, jpeg, jpg, pgm, png, ppm, tif, tiff, webp; in letters of either case). Hidden
    files are passed over, symbolic links are followed. Rows are in the order of the classes, and of the names within
    one.

    Every image is read once before this returns, and none is kept: a batch decodes its images in several threads, each
    image once, upright as its EXIF orientation says. `in_memory` keeps them all, where they fit.

    Args:
        folder: of images, or of class folders.
        size: ``(height, width)``, or one number for both, to which images are brought: the largest part of this shape
            around the centre is cut out, and resized by bicubic interpolation with antialiasing. None leaves
            images as they are, and they must be of one size.
        mode: "L" (grey, one channel), "RGB" or "RGBA". None takes that of the images, which must all have the same;
            palettes are colours, and an image in which something may be transparent is RGBA. Transparent parts
            are shown on white in the modes without transparency.
        classes: names of the classes in the order of their labels, for folders that are to be labelled alike; some may
            have no images here. None for the folders that there are, none of which may be empty.
        on_unreadable: "raise" refuses a folder with an image that cannot be read, naming it; "skip" leaves such images
            out with a warning, and ``unreadable`` of the result says which and why.
        threads: that decode, >= 1; None for as many as there are cores for this process.
        index_file: where what the images are is kept, so that only those that have changed are read again the next
            time; None for nowhere.

    Raises:
        ValueError: for a folder without images (says what is there), images that cannot be read, of several sizes
            without ``size`` or of several modes without ``mode`` (names the first of each), a class without images,
            arguments out of range, or an index file that is something else.
        OSError: if the index file cannot be written.
    """
    _check_arguments(size, mode, on_unreadable, threads)
    listing = list_images(Path(folder), classes)
    return image_files(
        folder,
        listing.names,
        labels=listing.labels,
        classes=listing.classes,
        may_be_empty=classes is not None,
        size=size,
        mode=mode,
        on_unreadable=on_unreadable,
        threads=threads,
        index_file=index_file,
    )


def image_files(
    folder: str | os.PathLike[str],
    names: Sequence[str],
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    classes: Sequence[str] = (),
    may_be_empty: bool = True,
    size: int | tuple[int, int] | None = None,
    mode: Mode | None = None,
    on_unreadable: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
    index_file: str | os.PathLike[str] | None = None,
) -> ImageFolder:
    """Named images of a folder, as `images` gives those that it finds there; for layouts with a table of their own.

    Args:
        folder: in which the images lie.
        names: their paths below it, with "/" between their parts; at least one, the rows in this order.
        labels: number of the class of each, in [0, len(classes)).
        classes: names of the classes; empty without labels.
        may_be_empty: whether there may be classes of which no image can be read.
        size: as of `images`.
        mode: as of `images`.
        on_unreadable: as of `images`; a file that is not there cannot be read.
        threads: as of `images`.
        index_file: as of `images`.

    Raises:
        ValueError: as of `images`; without names, or for another number of labels, or labels out of range.
        OSError: if the index file cannot be written.
    """
    _check_arguments(size, mode, on_unreadable, threads)
    folder, wanted_size = Path(folder), _checked_size(size)
    if not names:
        raise ValueError(f"no images of {folder} were named")
    if labels is not None and (
        len(labels) != len(names) or not 0 <= np.min(labels) <= np.max(labels) < len(classes)
    ):
        raise ValueError(
            f"labels must be {len(names)} numbers in 0 to {len(classes) - 1}, one for each image, got {len(labels)} in "
            f"{np.min(labels)} to {np.max(labels)}"
        )
    threads = _usable_cores() if threads is None else threads
    path = None if index_file is None else Path(index_file)
    found = dict(zip(names, inspect(folder, names, _pool(threads), path), strict=True))
    unreadable = {name: facts for name, facts in found.items() if isinstance(facts, str)}
    facts = {name: facts for name, facts in found.items() if isinstance(facts, Facts)}
    if unreadable:
        _report(folder, unreadable, len(found), on_unreadable)
    if wanted_size is None:
        remedy = "give size=..., to which all are cropped and resized, or resize them"
        wanted_size = _same(folder, "size", {name: (f.height, f.width) for name, f in facts.items()}, remedy)
    modes = {name: f.mode for name, f in facts.items()}
    mode_of_all: str = mode or _same(
        folder, "mode", modes, 'give mode="RGB" or another, in which all are read'
    )
    if labels is not None:
        readable = [name in facts for name in names]
        there = np.asarray(labels, np.int32)[readable]
        gone = sorted(set(np.asarray(labels).tolist()) - set(there.tolist()))
        if gone and not may_be_empty:
            listed = ", ".join(str(classes[label]) for label in gone)
            raise ValueError(f"no image of these classes of {folder} can be read: {listed}")
        labels = there
    return ImageFolder(
        folder, tuple(facts), labels, tuple(classes), unreadable, mode_of_all, wanted_size, threads
    )


def _check_arguments(
    size: int | tuple[int, int] | None, mode: Mode | None, on_unreadable: str, threads: int | None
) -> None:
    _checked_size(size)
    for name, value, allowed in (
        ("mode", mode, (*get_args(Mode), None)),
        ("on_unreadable", on_unreadable, ("raise", "skip")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, got {value!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")


def _checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(length, int) and length >= 1 for length in pair):
        raise ValueError(f"size is (height, width) or one number for both, in pixels >= 1, got {size}")
    return pair


def _report(folder: Path, unreadable: dict[str, str], num_images: int, on_unreadable: str) -> None:
    """Raises, or warns where images that cannot be read are to be left out."""
    first = "; ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[:5])
    more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    text = f"{len(unreadable)} of {num_images} images of {folder} cannot be read: {first}{more}"
    if on_unreadable == "raise" or len(unreadable) == num_images:
        raise ValueError(f'{text}. Repair or remove them, or leave them out by on_unreadable="skip"')
    warnings.warn(f"{text}. They are left out", stacklevel=3)


def _same(folder: Path, what: str, values: dict[str, Any], remedy: str) -> Any:
    """The value that all images have.

    Raises:
        ValueError: if there are several, with the first images of each.
    """
    names: dict[Any, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    kinds = sorted(names.items(), key=lambda kind: -len(kind[1]))
    told = "; ".join(
        f"{' x '.join(map(str, value)) if isinstance(value, tuple) else value}: {len(of)} images ({', '.join(of[:3])}"
        f"{', ...' if len(of) > 3 else ''})"
        for value, of in kinds[:5]
    )
    more = f"; and {len(kinds) - 5} more" if len(kinds) > 5 else ""
    unit = " (height x width)" if what == "size" else ""
    raise ValueError(f"images of {folder} have {len(kinds)} {what}s{unit}: {told}{more}. {remedy}")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Shared by all folders, so that rows remain plain data."""
    return ThreadPoolExecutor(threads, thread_name_prefix="gft_jax.data.images")
