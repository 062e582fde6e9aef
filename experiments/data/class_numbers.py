"""Which numbers of a pretrained network stand for the classes of new data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_NUM_TOLD = 5
_HOW = "--classes names all classes in the order of their numbers"


class InNetwork(NamedTuple):
    """Classes of data in a network."""

    numbers: np.ndarray
    """Of each class of the data ``[classes]``, int32, all different."""
    names: tuple[str, ...]
    """Of the network's classes in the order of its numbers, from now on."""


def in_network(names: Sequence[str], known: Sequence[str], num_classes: int) -> InNetwork:
    """The number of each class in a pretrained network.

    Classes that the network knows by name have the number that it gave them. Where none of them is known, they take
    its first numbers in their order, which mean something else from then on. Where the network knows its classes by
    number alone, as imported weights do, their names must be these numbers.

    Args:
        names: of the classes, each once.
        known: names of the classes that the network was trained on, in the order of their numbers; empty where it
            knows numbers alone.
        num_classes: of the network.

    Raises:
        ValueError: if the network knows some of the names and not the others, knows numbers alone and the names are
            others, or has fewer classes.
    """
    if not known:
        return _by_number(names, num_classes)
    there = [name for name in names if name in known]
    if len(there) == len(names):
        return InNetwork(np.array([known.index(name) for name in names], np.int32), tuple(known))
    if there:
        others = [name for name in names if name not in known]
        raise ValueError(
            f"of the {len(names)} classes of the data the base knows some, and not the others: known are "
            f"{_some(there)}; unknown are {_some(others)}. Give the number of each: {_HOW}, those of the base "
            f"({_some(known)}) with the new names behind them or in the places of others, {num_classes} at most"
        )
    if len(names) > num_classes:
        raise ValueError(
            f"the data have {len(names)} classes ({_some(names)}), and the network of the base has {num_classes}: give "
            f"data of {num_classes} at most"
        )
    return InNetwork(np.arange(len(names), dtype=np.int32), (*names, *known[len(names) :]))


def _by_number(names: Sequence[str], num_classes: int) -> InNetwork:
    numbers = [int(name) if name.isascii() and name.isdecimal() else -1 for name in names]
    wrong = [name for name, number in zip(names, numbers, strict=True) if not 0 <= number < num_classes]
    if wrong or len(set(numbers)) < len(numbers):
        found = f"{_some(wrong)} among the classes" if wrong else f"a number twice in {_some(names)}"
        raise ValueError(
            f"the base knows its {num_classes} classes by number alone, and there is {found} of the data: call their "
            f"folders by numbers from 0 to {num_classes - 1}, or give --classes: {_HOW}"
        )
    # A folder 007 has the number 7, and keeps its name, by which it is found again.
    named = dict(zip(numbers, names, strict=True))
    return InNetwork(
        np.array(numbers, np.int32), tuple(named.get(number, str(number)) for number in range(num_classes))
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_TOLD} more" if len(names) > _NUM_TOLD else ""
    return ", ".join(names[:_NUM_TOLD]) + more
