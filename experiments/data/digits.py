"""Scikit-learn's 8x8 digits under distribution shifts; real images that need no download."""

from typing import Any, Literal

import numpy as np
from sklearn.datasets import load_digits

from experiments.data.shifted import ShiftedData

Shift = Literal["unseen-classes", "rotation", "inversion", "rare-classes"]

ALL_CLASSES = tuple(range(10))
CLASSES: dict[Shift, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "unseen-classes": (ALL_CLASSES[:5], ALL_CLASSES[5:]),
    "rotation": (ALL_CLASSES, ALL_CLASSES),
    "inversion": (ALL_CLASSES, ALL_CLASSES),
    "rare-classes": (ALL_CLASSES, ALL_CLASSES[5:]),
}
"""Classes of the base and of the target images of each shift."""
NUM_TARGET: dict[Shift, int] = {"unseen-classes": 512, "rotation": 512, "inversion": 512, "rare-classes": 400}
"""The largest number of target images of each shift."""
RARE = 10
"""One in so many images of the rare classes is the base's."""
NUM_HELD_OUT = 384
"""Images for evaluation: the same ones for every number of target images."""


def class_facts(shift: Shift) -> dict[str, Any]:
    """What config.json, and so the page, says of a shift."""
    base, target = CLASSES[shift]
    remark = (
        {"shift_remark": "of the classes 5 to 9 the base has seen a tenth"} if shift == "rare-classes" else {}
    )
    return {"base_classes": base, "target_classes": target, **remark}


def labelled_digits() -> tuple[np.ndarray, np.ndarray]:
    """All images ``[1797, 8, 8]`` in [-1, 1], and their classes ``[1797]``, in an order that is always the same."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 8.0 - 1.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], labels[order]


def shifted_digits(shift: Shift, num_target: int) -> ShiftedData:
    """Images ``[num, 8, 8]`` in [-1, 1]; the split is always the same, and ``target`` grows with ``num_target``.

    Images are few: ``fresh`` are the first of those that ``target`` is taken from, and the two share images. A floor,
    in which real images are held against real ones, does not mind; nothing else may use ``fresh``. The images of
    ``held_out`` are in no other set. Of ``rare-classes``, the base's images are all digits 0 to 4 and a tenth of the
    digits 5 to 9, the target's the other digits 5 to 9: a law that the base covers.

    Raises:
        ValueError: if there are not so many target images.
    """
    if not 1 <= num_target <= NUM_TARGET[shift]:
        raise ValueError(
            f"num_target is {num_target}; the shift {shift} has 1 to {NUM_TARGET[shift]} target images"
        )
    images, labels = labelled_digits()
    if shift == "unseen-classes":
        base, pool = (images[np.isin(labels, classes)] for classes in CLASSES[shift])
    elif shift == "rare-classes":
        is_rare = np.isin(labels, CLASSES[shift][1])
        is_pool = is_rare & (np.cumsum(is_rare) % RARE != 0)
        base, pool = images[~is_pool], images[is_pool]
    else:
        half = len(images) // 2
        base, pool = images[:half], images[half:]
        pool = np.rot90(pool, axes=(1, 2)).copy() if shift == "rotation" else -pool
    held_out, rest = pool[:NUM_HELD_OUT], pool[NUM_HELD_OUT:]
    return ShiftedData(base, rest[:num_target], held_out, rest[:NUM_HELD_OUT])
