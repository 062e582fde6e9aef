"""Which images lie in a folder, and which class each is of."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of what counts as an image, in letters of either case."""


class Listing(NamedTuple):
    """Images of a folder in an order that is the same on every machine: by class, then by name."""

    names: list[str]
    """Paths below the folder, with "/" between their parts."""
    labels: list[int] | None
    """Number of the class of each; None for a folder without classes."""
    classes: tuple[str, ...]
    """Names of the classes."""


def list_images(folder: Path, classes: Sequence[str] | None) -> Listing:
    """Images that lie in the folder, or in class folders in it, of which each is searched to any depth.

    Hidden files and folders, whose names begin with a dot, are passed over, and symbolic links are followed.

    Raises:
        ValueError: if the folder is none, has no images, has some both beside and in folders, or a class without any.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    flat = [entry.name for entry in entries if _is_image(entry.name) and not entry.is_dir()]
    below = {entry.name: _walk(entry) for entry in entries if entry.is_dir()}
    with_images = [name for name, found in below.items() if found]
    if flat and with_images:
        raise ValueError(
            f"{folder} holds {len(flat)} images itself (the first: {flat[0]}) and others in folders "
            f"({_some(with_images)}): give a folder of images, or one of class folders"
        )
    if not flat and not with_images:
        raise ValueError(_nothing_found(folder))
    if flat:
        if classes is not None:
            raise ValueError(f"{folder} has no class folders, and classes={list(classes)} were asked for")
        return Listing(flat, None, ())
    if classes is None:
        empty = [name for name in below if name not in with_images]
        if empty:
            raise ValueError(
                f"class folders of {folder} without images: {_some(empty)}; remove them, or name all classes in the "
                "order of their labels by classes=..., which may then be empty"
            )
        classes = with_images
    return _by_class(folder, below, tuple(classes))


def _by_class(folder: Path, below: dict[str, list[str]], classes: tuple[str, ...]) -> Listing:
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    unknown = [name for name, found in below.items() if found and name not in classes]
    if repeated or unknown or not any(below.get(name) for name in classes):
        wrong = f"names {_some(repeated)} twice" if repeated else f"does not name {_some(unknown)}"
        raise ValueError(f"classes={list(classes)} {wrong}; {folder} has images in: {_some(list(below))}")
    found = [(f"{name}/{file}", label) for label, name in enumerate(classes) for file in below.get(name, ())]
    return Listing([name for name, _ in found], [label for _, label in found], classes)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _walk(folder: Path) -> list[str]:
    """Images below a folder, sorted; a link to a folder that was entered already is not entered again."""
    entered, names = set(), []
    for place, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder)
        names += [(below / name).as_posix() for name in files if _is_image(name)]
    return sorted(names)


def _nothing_found(folder: Path) -> str:
    files = [name for _, _, found in os.walk(folder, followlinks=False) for name in found]
    kinds = Counter(
        "hidden" if name.startswith(".") else Path(name).suffix or "without a suffix" for name in files
    )
    what = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files at all"
    return (
        f"{folder} holds no images: found {what}; images end in {' '.join(SUFFIXES)}, and lie in the folder or in "
        "class folders in it"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
