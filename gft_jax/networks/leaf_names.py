"""Parameters by name: ``blocks_0/qkv/kernel``, in any pytree, and the choice of some by patterns."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import jax

_MOST_NAMES = 24


def name_of(path: Any) -> str:
    """Name of a leaf: the keys, attributes and positions on its path, joined by ``/``; ``value`` of nnx left out."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name.

    Raises:
        ValueError: if two leaves have one name.
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    named = {name_of(path): leaf for path, leaf in flat}
    if len(named) < len(flat):
        raise ValueError("two leaves of this pytree have one name: keys must not hold a /")
    return named


def checked_patterns(name: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """The patterns as a tuple.

    Raises:
        ValueError: for a string alone, which would be taken for its letters, or anything but strings.
    """
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f'{name} must be a sequence of patterns such as ["*/qkv/kernel"], got {patterns!r}')
    return tuple(patterns)


def matching(name: str, patterns: Iterable[str], among: Iterable[str]) -> list[str]:
    """Those names that match one of the patterns, in their order.

    A pattern is that of a shell, for the whole name: ``*`` stands for any characters, ``/`` included, ``?`` for one,
    ``[ab]`` for one of these.

    Args:
        name: of the argument that gave the patterns.
        patterns: each must match a name.
        among: the names that exist.

    Raises:
        ValueError: naming a pattern that matches nothing, and the names that exist.
    """
    among = list(among)
    chosen = set()
    for pattern in patterns:
        found = {each for each in among if fnmatch.fnmatchcase(each, pattern)}
        if not found:
            raise ValueError(f"{name}: the pattern {pattern!r} matches nothing; there are {listed(among)}")
        chosen |= found
    return [each for each in among if each in chosen]


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first of them where they are many."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
