"""Parameters by name: ``blocks_0/qkv/kernel``, in any pytree, and the choice of some by patterns."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from flax import nnx

_MOST_NAMES = 24


def names_of(tree: Any) -> list[str]:
    """Names of the leaves of a pytree, in the order of ``jax.tree.leaves``.

    A name is the keys, attributes and positions on the path, joined by ``/``; those of nnx's variables, whose leaves
    lie in an attribute ``value``, are without it.
    """
    names = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable):
        for inner, _ in jax.tree_util.tree_leaves_with_path(node):
            path_in_node = inner[1:] if _is_variable(node) else inner
            names.append(jax.tree_util.keystr((*path, *path_in_node), simple=True, separator="/"))
    return names


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name.

    Raises:
        ValueError: if two leaves have one name.
    """
    leaves = jax.tree.leaves(tree)
    named = dict(zip(names_of(tree), leaves, strict=True))
    if len(named) < len(leaves):
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
